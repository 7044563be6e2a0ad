"""Documents to token IDs, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from treering.corpus.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECE = 2**18  # characters; a longer document is tokenised in pieces, cut at line ends
_BATCH = 2**19  # characters tokenised at once


def tokenise(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    """Documents with their token IDs, in order.

    A document of more than 2^18 characters is tokenised in pieces cut at line ends: a tokenizer needs well
    over a hundred times a text's size in memory, and more than proportional time. Only tokens across a cut
    can differ from those of the whole.
    """
    batch: list[Document] = []
    size = 0
    for document in documents:
        if len(document.text) > PIECE:
            yield from _encoded(batch, tokenizer)
            batch, size = [], 0
            pieces = (Document("", piece) for piece in _pieces(document.text))
            yield document, np.concatenate([next(_encoded([piece], tokenizer))[1] for piece in pieces])
            continue
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH:
            yield from _encoded(batch, tokenizer)
            batch, size = [], 0
    yield from _encoded(batch, tokenizer)


def _encoded(batch: list[Document], tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    from treering.tokenizer import encode

    ids = encode(tokenizer, [document.text for document in batch]) if batch else []
    return ((document, np.array(i, np.int32)) for document, i in zip(batch, ids, strict=True))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end
