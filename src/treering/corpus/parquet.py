"""Rows of a Parquet file, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treering.corpus.source import Source
from treering.corpus.streams import Receipt, open_stream
from treering.errors import TreeringError


def parquet_rows(path: str, name: str, source: Source, receipt: Receipt) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's text and id, with where it stands.

    Raises:
        TreeringError: the file is not Parquet, is damaged, or lacks the text column.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    from treering.corpus.documents import missing_field

    with open_stream(path, name, "", receipt):  # Parquet is read from its end: the hash is a pass of its own
        pass
    try:
        with fsspec.open(path, "rb") as stream:
            file = pq.ParquetFile(stream)
            columns = file.schema_arrow.names
            text = source.text_field if source.text_field in columns else "paragraphs"
            if text not in columns:
                raise missing_field(path, source, columns)
            wanted = [c for c in (text, source.id_field) if c in columns]
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for values in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", values
    except pa.ArrowException as error:
        raise TreeringError(f"{path} is not a whole Parquet file: {error}") from None
