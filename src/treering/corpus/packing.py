"""Documents' tokens to blocks of one length, and blocks to a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_ROWS = 1_024  # blocks per record batch of the file


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
        while rows := list(itertools.islice(iterator, _ROWS)):
            tokens = np.concatenate(rows)
            digest.update(tokens.astype("<i4", copy=False).tobytes())
            column = pa.FixedSizeListArray.from_arrays(pa.array(tokens), block_size)
            writer.write_table(pa.table({"input_ids": column}, schema=features.arrow_schema))
            count += len(rows)
        writer.finalize()
    return count, digest.hexdigest()
