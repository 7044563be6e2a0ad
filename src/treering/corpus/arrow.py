"""Arrow stream files read by position, not mapped: a mapped file that is cut short kills the process that reads it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from treering.errors import TreeringError
from treering.reading import printable

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER, _COMPRESSION = 2, 3  # fields of the flatbuffer tables Message and RecordBatch (Arrow's Message.fbs)


def read_batches(path: Path, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, int, int]]:
    """The record batches of a file, each with the place in the file and the address in memory where its body begins.

    Every batch is whole and valid: offsets within its buffers, text in UTF-8, nothing null. Memory holds one at a time
    and no more than the file holds, for a compressed one is refused.

    Raises:
        TreeringError: the file is missing, cut short, damaged, or of another schema.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            messages = pa.ipc.MessageReader.open_stream(file)
            first = next(messages, None)
            # pyarrow would crash of another type of message.
            own = pa.ipc.read_schema(first) if first and first.type == "schema" else None
            if own is None or not own.equals(schema):
                raise damaged(path, f"its columns are not {', '.join(schema.names)} of the expected types")
            for message in messages:
                if message.type != "record batch" or _compressed(message.metadata):
                    raise damaged(path, "Treering did not write it")
                batch = pa.ipc.read_record_batch(message, own)
                batch.validate(full=True)
                if any(column.null_count for column in batch.columns):
                    raise damaged(path, "a value in it is null")
                yield batch, file.tell() - message.body.size, message.body.address
    except (pa.ArrowException, OSError, TypeError, OverflowError, UnicodeDecodeError, struct.error) as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, why: str) -> TreeringError:
    """The error for a file that is not what was prepared."""
    return TreeringError(f"{path} is missing or damaged: {printable(why)}. Copy it again, or prepare the corpus again.")


def _compressed(metadata: pa.Buffer) -> bool:
    """Whether a record batch says that its body is compressed; it could say so of any size."""
    content = metadata.to_pybytes()
    (message,) = struct.unpack_from("<I", content)
    header = _field(content, message, _HEADER)
    if header is None:
        return True  # or worse: no batch at all
    (batch,) = struct.unpack_from("<I", content, header)
    return _field(content, header + batch, _COMPRESSION) is not None


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer table keeps a field; None if it has none."""
    (back,) = struct.unpack_from("<i", content, table)
    (size,) = struct.unpack_from("<H", content, table - back)
    entry = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", content, table - back + entry) if entry < size else (0,)
    return table + offset if offset else None
