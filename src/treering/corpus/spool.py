"""Where documents go while sources are read: the training side's tokens, and the held-out texts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.corpus.documents import Document
from treering.corpus.prepared import document_line

_CHUNK = 2**20


class Spool:
    """A temporary file of token IDs in the order they were read.

    Memory holds each document's length and text hash: 12 bytes a document.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self._file = path.open("w+b")
        self._lengths, self._hashes = array("I"), array("Q")

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self.path.unlink()

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, ids: NDArray[np.int32], text_hash: int) -> None:
        """Add one document."""
        self._file.write(ids.astype(self._dtype).tobytes())
        self._lengths.append(len(ids))
        self._hashes.append(text_hash)

    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of each document, without separators."""
        return np.frombuffer(self._lengths, np.uint32) if self._lengths else np.empty(0, np.uint32)

    def repeated(self, hashes: Iterable[int]) -> NDArray[np.bool_]:
        """For each document, whether its text has one of these hashes; to be asked once."""
        known = np.unique(np.fromiter(hashes, np.uint64))
        ours = np.array(self._hashes, np.uint64)
        self._hashes = array("Q")
        if not len(known):
            return np.zeros(len(ours), bool)
        found = np.empty(len(ours), bool)
        for start in range(0, len(ours), _CHUNK):
            chunk = ours[start : start + _CHUNK]
            place = np.minimum(np.searchsorted(known, chunk), len(known) - 1)
            found[start : start + _CHUNK] = known[place] == chunk
        return found

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


class HeldOut:
    """An Arrow file of whole held-out documents, in the order they were read."""

    def __init__(self, path: Path) -> None:
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

        self._features = Features({name: Value("string") for name in ("id", "source", "text")})
        self._writer = ArrowWriter(path=str(path), features=self._features)
        self._rows: list[dict[str, str]] = []
        self._pending = 0
        self.hashes, self.digest = array("Q"), hashlib.sha256()
        self.documents = self.tokens = self.text_bytes = 0

    def __enter__(self) -> HeldOut:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._flush()
            self._writer.finalize()
        self._writer.close()

    def append(self, document: Document, source: str, text_hash: int, text_bytes: int, tokens: int) -> None:
        """Add one document of so many UTF-8 bytes and tokens (with its separator)."""
        self._rows.append({"id": document.id, "source": source, "text": document.text})
        self.digest.update(document_line(document.id, source, document.text))
        self._pending += text_bytes
        if self._pending >= _CHUNK:
            self._flush()
        self.hashes.append(text_hash)
        self.documents += 1
        self.tokens += tokens
        self.text_bytes += text_bytes

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._features.arrow_schema))
        self._rows, self._pending = [], 0
