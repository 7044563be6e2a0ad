from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pytest

from treering.corpus.arrow import _field, read_batches
from treering.errors import TreeringError

SCHEMA = pa.schema({"id": pa.string(), "text": pa.string()})


def write(path: Path, table: pa.Table, **options: object) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options.get("options")) as w:
        for batch in table.to_batches(max_chunksize=2):
            w.write_batch(batch)
    return path


@pytest.fixture
def table() -> pa.Table:
    return pa.table({"id": ["a", "b", "c"], "text": ["один", "", "雪"]})


def test_batches_and_where_they_lie(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "a.arrow", table)
    found = list(read_batches(path, SCHEMA))
    assert pa.Table.from_batches([batch for batch, _, _ in found]).equals(table)
    content = path.read_bytes()
    for batch, place, address in found:
        data = batch.column(1).buffers()[2]
        start = place + data.address - address
        assert content[start : start + data.size] == data.to_pybytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path, codec: str) -> None:
    bomb = pa.table({"id": ["a"], "text": ["x" * 50_000_000]})
    path = write(tmp_path / "a.arrow", bomb, options=pa.ipc.IpcWriteOptions(compression=codec))
    with pytest.raises(TreeringError, match="Treering did not write it"):
        list(read_batches(path, SCHEMA))
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (pa.table({"id": ["a"], "text": [b"bytes"]}), "not id, text of the expected types"),
        (pa.table({"id": ["a"]}), "not id, text"),
        (pa.table({"id": ["a"], "text": pa.array(["x"]).dictionary_encode()}), "not id, text"),
        (pa.table({"id": ["a", "b"], "text": ["x", None]}), "is null"),
    ],
)
def test_other_columns_and_nulls_are_refused(tmp_path: Path, other: pa.Table, expected: str) -> None:
    with pytest.raises(TreeringError, match=expected):
        list(read_batches(write(tmp_path / "a.arrow", other), SCHEMA))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "a.arrow", table)
    path.write_bytes(path.read_bytes().replace("雪".encode(), b"\xff\xff\xff"))
    with pytest.raises(TreeringError, match=r"a\.arrow is missing or damaged: .*Invalid UTF8"):
        list(read_batches(path, SCHEMA))


def test_every_cut_and_every_flipped_byte_is_read_or_told(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "a.arrow", table)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in range(len(whole))]
    flips = [bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]]) for at in range(len(whole)) for flip in (1, 0xFF)]
    for content in cuts + flips:
        path.write_bytes(content)
        try:
            for batch, _, _ in read_batches(path, SCHEMA):
                batch.to_pylist()
        except TreeringError as error:
            assert str(path) in str(error)


def test_a_file_that_does_not_begin_with_its_schema_is_refused(tmp_path: Path, table: pa.Table) -> None:
    """Found by fuzzing: one byte in the first message's type made pyarrow crash the process."""
    path = write(tmp_path / "a.arrow", table)
    whole = path.read_bytes()
    (table_at,) = struct.unpack_from("<I", whole, 8)
    at = _field(whole[8:], table_at, 1)  # the type of the header
    assert at is not None and whole[8 + at] == 1  # schema
    for kind in range(256):
        if kind != 1:
            path.write_bytes(whole[: 8 + at] + bytes([kind]) + whole[9 + at :])
            with pytest.raises(TreeringError, match=r"a\.arrow is missing or damaged"):
                list(read_batches(path, SCHEMA))
