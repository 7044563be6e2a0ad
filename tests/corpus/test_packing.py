from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from treering.corpus import pack
from treering.corpus.packing import write_blocks

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


def test_written_blocks_are_mapped_and_hashed(tmp_path: Path) -> None:
    blocks = [np.arange(n, n + 8, dtype=np.int32) for n in range(3_000)]
    count, digest = write_blocks(tmp_path / "a.arrow", iter(blocks), 8)
    dataset = Dataset.from_file(str(tmp_path / "a.arrow"))
    assert count == len(dataset) == 3_000
    assert dataset.column_names == ["input_ids"]
    assert dataset.with_format("numpy")["input_ids"][:].tolist() == np.stack(blocks).tolist()
    assert dataset.with_format("torch")[7]["input_ids"].shape == (8,)
    assert digest == hashlib.sha256(np.stack(blocks).astype("<i4").tobytes()).hexdigest()
