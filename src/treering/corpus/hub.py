"""Rows of a dataset on the Hugging Face hub, or of a local directory laid out like one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treering.corpus.source import HUB_PREFIX, Source, missing_field
from treering.errors import TreeringError
from treering.reading import printable


def hub_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with where it stands, as ``datasets`` streams it.

    Raises:
        TreeringError: the dataset cannot be reached or read, or lacks the text column.
    """
    from datasets import load_dataset

    name = source.path.removeprefix(HUB_PREFIX)
    where = f"{name} ({source.split})"
    try:
        rows = load_dataset(
            name, source.config, split=source.split, revision=source.revision, streaming=source.streaming
        )
        columns = rows.column_names
        if columns and source.text_field not in columns and "paragraphs" not in columns:
            raise missing_field(where, source, columns)
        if columns:
            rows = rows.select_columns([c for c in (source.text_field, source.id_field, "paragraphs") if c in columns])
        for number, row in enumerate(rows, 1):
            yield f"{where}, row {number}", row
    except (TreeringError, MemoryError):
        raise
    except Exception as error:  # the hub, datasets and each file format have exceptions of their own
        raise TreeringError(
            f"The dataset {where} could not be read: {type(error).__name__}: {printable(str(error), 1_000)}\n"
            "Check its name, configuration and split, and that this machine reaches the hub; or download "
            "its files and give their directory."
        ) from error
