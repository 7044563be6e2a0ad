"""What a tokenizer is made of, and what it makes of a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from treering.tokenizer.layout import BYTE_TOKENS, LayoutName, is_reserved, layout_of
from treering.tokenizer.loading import encode, identity


@dataclass(frozen=True)
class Description:
    """Counts of a tokenizer's tokens by kind; those of text are None if the layout is not one of ours."""

    layout: LayoutName | None
    vocab_size: int
    special: int
    bytes: int | None
    characters: int | None
    ngrams: dict[int, int] | None  # by length in characters
    unused: int | None
    identity: str


def describe(tokenizer: PreTrainedTokenizerFast) -> Description:
    """Layout, number of tokens of each kind, and identity of any fast tokenizer."""
    vocabulary = tokenizer.get_vocab()
    special = sum(token.special for token in tokenizer.added_tokens_decoder.values())
    layout = layout_of(vocabulary)
    if layout is None:
        return Description(None, len(vocabulary), special, None, None, None, None, identity(tokenizer))
    lengths = Counter(len(token) for token in vocabulary if not is_reserved(token))
    return Description(
        layout=layout,
        vocab_size=len(vocabulary),
        special=special,
        bytes=len(BYTE_TOKENS),
        characters=lengths.pop(1),
        ngrams=dict(sorted(lengths.items())),
        unused=sum(re.fullmatch(r"<unused_\d+>", token) is not None for token in vocabulary),
        identity=identity(tokenizer),
    )


def characters_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Characters of all texts over tokens of all texts, the paper's measure; NaN if there is no text."""
    characters = tokens = 0
    for text in texts:
        characters += len(text)
        tokens += len(encode(tokenizer, [text])[0])
    return characters / tokens if tokens else float("nan")
