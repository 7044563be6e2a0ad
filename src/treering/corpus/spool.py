"""Where documents go on their way: texts of each side of the split, and the training side's tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.corpus.arrow import read_batches
from treering.corpus.documents import Document

_CHUNK = 2**20
_COLUMNS = ("id", "source", "text")


class Spool:
    """A temporary file of token IDs in the order they were read.

    Memory holds each document's length: 4 bytes a document.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self._file = path.open("w+b")
        self._lengths = array("I")

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self.path.unlink()

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, ids: NDArray[np.int32]) -> None:
        """Add one document."""
        self._file.write(ids.astype(self._dtype).tobytes())
        self._lengths.append(len(ids))

    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of each document, without separators."""
        return np.frombuffer(self._lengths, np.uint32) if self._lengths else np.empty(0, np.uint32)

    def read(self, order: NDArray[np.integer]) -> Iterator[NDArray[np.int32]]:
        """Documents in any order. Reads rather than maps, so that the file does not count as our memory."""
        self._file.flush()
        width = self._dtype.itemsize
        starts = np.concatenate([[0], np.cumsum(self.lengths(), dtype=np.int64)]) * width
        with self.path.open("rb", buffering=0) as file:
            for index in order:
                file.seek(starts[index])
                content = file.read(starts[index + 1] - starts[index])
                yield np.frombuffer(content, self._dtype).astype(np.int32)


class Texts:
    """An Arrow file of whole documents and their sources' names, in the order they were read."""

    def __init__(self, path: Path) -> None:
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

        self.path = path
        self._features = Features(dict.fromkeys(_COLUMNS, Value("string")))
        self._writer = ArrowWriter(path=str(path), features=self._features)
        self._rows: list[dict[str, str]] = []
        self._pending = 0

    def __enter__(self) -> Texts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._flush()
            self._writer.finalize()
        self._writer.close()

    def append(self, document: Document, source: str) -> None:
        """Add one document."""
        self._rows.append({"id": document.id, "source": source, "text": document.text})
        self._pending += len(document.text.encode("utf-8"))
        if self._pending >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._features.arrow_schema))
        self._rows, self._pending = [], 0


def read_texts(path: Path) -> Iterator[tuple[str, Document]]:
    """Documents of a file that `Texts` wrote, with their sources' names."""
    import pyarrow as pa

    for batch, _, _ in read_batches(path, pa.schema(dict.fromkeys(_COLUMNS, pa.string()))):
        for identity, source, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield source, Document(identity, text)
