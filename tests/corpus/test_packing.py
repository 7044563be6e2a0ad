from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from treering.corpus import pack
from treering.corpus.arrow import read_batches
from treering.corpus.packing import Blocks, write_blocks
from treering.errors import TreeringError

documents = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=40), max_size=20)


@given(documents, st.integers(1, 17))
def test_blocks_are_the_documents_with_separators_up_to_the_remainder(found: list, size: int) -> None:
    stream = [token for document in found for token in [2, *document]]
    blocks = list(pack(found, size, separator=2))
    assert all(block.shape == (size,) and block.dtype == np.int32 for block in blocks)
    assert [int(token) for block in blocks for token in block] == stream[: len(stream) // size * size]


def test_blocks_do_not_share_memory() -> None:
    first, second = pack([[1, 1, 1, 3, 3, 3, 3]], 4, separator=0)
    second[:] = 9
    assert first.tolist() == [0, 1, 1, 1]


def test_written_blocks_are_a_dataset_and_hashed(tmp_path: Path) -> None:
    blocks = [np.arange(n, n + 8, dtype=np.int32) for n in range(3_000)]
    count, digest = write_blocks(tmp_path / "a.arrow", iter(blocks), 8)
    dataset = Dataset.from_file(str(tmp_path / "a.arrow"))
    assert count == len(dataset) == 3_000
    assert dataset.column_names == ["input_ids"]
    assert dataset.with_format("numpy")["input_ids"][:].tolist() == np.stack(blocks).tolist()
    assert dataset.with_format("torch")[7]["input_ids"].shape == (8,)
    assert digest == hashlib.sha256(np.stack(blocks).astype("<i4").tobytes()).hexdigest()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_blocks(tmp_path / "a.arrow", (np.arange(n, n + 8, dtype=np.int32) for n in range(3_000)), 8)
    return tmp_path / "a.arrow"


def test_blocks_are_read_in_any_order(written: Path) -> None:
    plain = Dataset.from_file(str(written))
    blocks = Blocks(written, 8, 4_000)
    assert len(blocks) == 3_000
    for row in (2_999, 0, 1_023, 1_024, -1, 1_000, 999, 2_500):
        found = blocks[row]["input_ids"]
        assert found.dtype == np.int32
        assert found.tolist() == plain[row]["input_ids"]
    assert sum(1 for _ in blocks) == 3_000
    with pytest.raises(IndexError):
        blocks[3_000]
    digest = hashlib.sha256(plain.with_format("numpy")["input_ids"][:].astype("<i4").tobytes())
    assert blocks.sha256 == digest.hexdigest()
    assert pickle.loads(pickle.dumps(blocks))[7]["input_ids"].tolist() == blocks[7]["input_ids"].tolist()


def test_blocks_of_a_file_cut_short_or_changed_later_are_told(written: Path) -> None:
    """Mapped, the process died by SIGBUS, or trained on other text."""
    blocks = Blocks(written, 8, 4_000)
    with written.open("r+b") as file:
        file.seek(written.stat().st_size // 2)
        file.write(b"\x01")
        file.truncate(written.stat().st_size - 4_000)
    told = 0
    for row in range(3_000):
        try:
            assert blocks[row]["input_ids"].tolist() == list(range(row, row + 8))
        except TreeringError as error:
            assert f"block {row} is no longer what it was" in str(error)
            told += 1
    assert 100 < told < 130


def test_an_open_file_outlives_its_name(written: Path) -> None:
    blocks = Blocks(written, 8, 4_000)
    written.unlink()
    assert blocks[5]["input_ids"].tolist() == list(range(5, 13))


def test_long_blocks_are_written_in_batches_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treering.corpus.packing._TOKENS", 64)
    write_blocks(tmp_path / "a.arrow", (np.full(30, n, np.int32) for n in range(7)), 30)
    schema = pa.schema({"input_ids": pa.list_(pa.int32(), 30)})
    assert [len(batch) for batch, _, _ in read_batches(tmp_path / "a.arrow", schema)] == [2, 2, 2, 1]
    assert [int(block["input_ids"][0]) for block in Blocks(tmp_path / "a.arrow", 30, 7)] == list(range(7))
