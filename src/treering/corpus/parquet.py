"""Rows of a Parquet file, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treering.corpus.source import Source, missing_field
from treering.corpus.streams import Receipt, open_stream
from treering.errors import TreeringError
from treering.reading import printable

_ROWS = 8
"""Read at once: a dictionary lets rows of a small file share one long text, which each holds for itself in memory."""


def parquet_rows(path: str, name: str, source: Source, receipt: Receipt) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's text and id, with where it stands.

    Raises:
        TreeringError: the file is not Parquet, is damaged, or lacks the text column.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_stream(path, name, "", receipt):  # Parquet is read from its end: the hash is a pass of its own
        pass
    row = 0
    try:
        with fsspec.open(path, "rb") as stream:
            size = max(1, stream.seek(0, 2))
            file = pq.ParquetFile(
                stream,
                thrift_string_size_limit=size,  # what the file says of itself cannot be longer than it is
                thrift_container_size_limit=size,
                page_checksum_verification=True,
            )
            columns = file.schema_arrow.names
            text = source.text_field if source.text_field in columns else "paragraphs"
            if text not in columns:
                raise missing_field(path, source, columns)
            wanted = [c for c in (text, source.id_field) if c in columns]
            for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
                batch.validate(full=True)
                for values in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", values
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, ImportError) as error:
        raise TreeringError(
            f"{path} is not a whole Parquet file (after row {row}): {printable(str(error))}. "
            "It may be damaged; copy or download it again."
        ) from None
