"""Documents' tokens to blocks of one length, blocks to a file, and a file's blocks in any order."""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.corpus.arrow import damaged, read_batches

_ROWS, _TOKENS = 1_024, 2**22  # at most so many blocks, or tokens of more than one, in a record batch of the file


def pack(
    documents: Iterable[Sequence[int] | NDArray[np.integer]], block_size: int, separator: int
) -> Iterator[NDArray[np.int32]]:
    """Blocks ``[block_size]`` of the stream ``</s> d1 </s> d2 …``; the last, incomplete one is dropped.

    The separator stands *before* each document, so that a model learns to predict a document's first token
    from it; a document's end is followed by the next one's separator. Blocks ignore where documents begin
    and end.
    """
    block, filled = np.empty(block_size, np.int32), 0
    for document in documents:
        ids = np.empty(len(document) + 1, np.int32)
        ids[0], ids[1:] = separator, document
        start = 0
        while len(ids) - start >= block_size - filled:
            end = start + block_size - filled
            block[filled:] = ids[start:end]
            yield block
            block, filled, start = np.empty(block_size, np.int32), 0, end
        block[filled : filled + len(ids) - start] = ids[start:]
        filled += len(ids) - start


def write_blocks(path: Path, blocks: Iterable[NDArray[np.int32]], block_size: int) -> tuple[int, str]:
    """Write blocks as the Arrow file of a `datasets.Dataset` with the one column ``input_ids``.

    Returns how many there were, and the SHA-256 of their tokens as little-endian 32-bit integers in order.
    """
    import pyarrow as pa
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"input_ids": List(Value("int32"), length=block_size)})
    digest, count = hashlib.sha256(), 0
    iterator = iter(blocks)
    with ArrowWriter(path=str(path), features=features) as writer:
        while rows := list(itertools.islice(iterator, max(1, min(_ROWS, _TOKENS // block_size)))):
            tokens = np.concatenate(rows)
            digest.update(tokens.astype("<i4", copy=False).tobytes())
            column = pa.FixedSizeListArray.from_arrays(pa.array(tokens), block_size)
            writer.write_table(pa.table({"input_ids": column}, schema=features.arrow_schema))
            count += len(rows)
        writer.finalize()
    return count, digest.hexdigest()


class Blocks:
    """The training blocks of a prepared corpus, for a Trainer: row i is ``{"input_ids": int32 [block_size]}``.

    Rows are read by position in any order. The whole file is read once when it is opened, for `sha256`; of that memory
    keeps 4 bytes a block, by which every row is recognised when it is read.

    Args:
        vocab_size: all IDs are below.
        report: is called with bytes read, as they are.

    Raises:
        TreeringError: the file is missing, damaged, of another block size, or has an ID that is not in the vocabulary.

    Attributes:
        sha256: of all tokens as little-endian 32-bit integers in order.
    """

    def __init__(
        self, path: Path, block_size: int, vocab_size: int, report: Callable[[int], object] = lambda count: None
    ) -> None:
        import pyarrow as pa

        self.path, self.block_size = path, block_size
        self._bytes = 4 * block_size
        self._firsts, self._places = array("q"), array("q")  # of each record batch: its first row, its first byte
        self._checksums = array("I")
        digest = hashlib.sha256()
        schema = pa.schema({"input_ids": pa.list_(pa.int32(), block_size)})
        for batch, place, address in read_batches(path, schema):
            values = batch.column(0).flatten()
            (_, buffer), start = values.buffers(), 4 * values.offset
            content = memoryview(buffer)[start : start + self._bytes * len(batch)]
            tokens = np.frombuffer(content, "<u4")  # a negative ID is a large one so
            if len(tokens) and int(tokens.max()) >= vocab_size:
                raise damaged(path, f"it has a token ID that is not below {vocab_size}, the tokenizer's size")
            digest.update(content)
            self._firsts.append(len(self))
            self._places.append(place + buffer.address + start - address)
            self._checksums.extend(
                zlib.crc32(content[low : low + self._bytes]) for low in range(0, len(content), self._bytes)
            )
            report(len(content))
        self.sha256 = digest.hexdigest()
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._checksums)

    def __getitem__(self, row: int) -> dict[str, NDArray[np.int32]]:
        """One block.

        Raises:
            IndexError: there is no such row.
            TreeringError: the file is no longer what it was when it was opened.
        """
        row = range(len(self))[row]
        batch = bisect_right(self._firsts, row) - 1
        place = self._places[batch] + (row - self._firsts[batch]) * self._bytes
        content = bytearray(os.pread(self._file, self._bytes, place))
        if zlib.crc32(content) != self._checksums[row]:
            raise damaged(self.path, f"block {row} is no longer what it was when the file was opened")
        return {"input_ids": np.frombuffer(content, "<i4").astype(np.int32, copy=False)}
