"""Which ID every token stands at (the paper, section "Tokenizers"), and the names text may never become."""

from __future__ import annotations

import re
from typing import Literal, get_args

from treering.errors import TreeringError

LayoutName = Literal["unicode", "compact"]

# fmt: off
SPECIAL_TOKENS = [
    "<pad>", "<s>", "</s>", "<unk>", "<think>", "</think>", "<emotions>", "</emotions>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "[INST]", "[/INST]",
    "[EOT]", "[USER]", "[ASSISTANT]", "[FIM_PREFIX]", "[FIM_MIDDLE]", "[FIM_SUFFIX]", "[FIM_PAD]",
    "[REPO_NAME]", "[FILE_SEP]",
]
# fmt: on
"""The paper's 23, in its order."""

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(0x80, 0x100)]
"""A character without an ID is its UTF-8 bytes. They are never ASCII: each ASCII character has an ID."""

BMP = 0x10000
SPECIAL_START = 0xE000
BYTES_START = 0xE080
OWN_CODE_POINTS = [*range(0xD800), *range(0xF900, 0xFFFF)]
FREE_IN_BMP = [*range(0xD800, 0xE000), *range(0xE100, 0xF900)]

COMPACT_MINIMUM = len(SPECIAL_TOKENS) + 128 + len(BYTE_TOKENS)


def choose_layout(vocab_size: int, layout: LayoutName | None = None) -> LayoutName:
    """The layout asked for, or the one that fits: ``unicode`` from 65,536 tokens on, ``compact`` below.

    Raises:
        TreeringError: no such layout, or the vocabulary is too small for it.
    """
    if layout is None:
        layout = "unicode" if vocab_size >= BMP else "compact"
    if layout not in get_args(LayoutName):
        raise TreeringError(f"There is no layout {layout!r}; choose unicode or compact.")
    if layout == "unicode" and vocab_size < BMP:
        raise TreeringError(
            f"A vocabulary of {vocab_size:,} is too small for the unicode layout, where every code point of "
            f"the basic plane has an ID: ask for {BMP:,} tokens or more, or for the compact layout."
        )
    if vocab_size < COMPACT_MINIMUM:
        raise TreeringError(
            f"A vocabulary of {vocab_size:,} is too small: the compact layout needs {COMPACT_MINIMUM} tokens "
            f"({len(SPECIAL_TOKENS)} special ones, 128 ASCII characters, {len(BYTE_TOKENS)} bytes) "
            "and one more for each character and n-gram of your corpus."
        )
    return layout


def fixed_tokens(layout: LayoutName) -> dict[str, int]:
    """The tokens that depend on no corpus: special tokens, bytes, the layout's own characters."""
    if layout == "unicode":
        return {
            **{chr(code): code for code in OWN_CODE_POINTS},
            **{token: SPECIAL_START + i for i, token in enumerate(SPECIAL_TOKENS)},
            **{token: BYTES_START + i for i, token in enumerate(BYTE_TOKENS)},
        }
    return {token: i for i, token in enumerate([*SPECIAL_TOKENS, *map(chr, range(128)), *BYTE_TOKENS])}


def free_ids(layout: LayoutName, vocab_size: int) -> list[list[int]]:
    """Groups of IDs that a corpus fills; the best tokens go to the first group."""
    if layout == "unicode":
        return [FREE_IN_BMP, list(range(BMP, vocab_size))]
    return [list(range(COMPACT_MINIMUM, vocab_size))]


def lay_out(layout: LayoutName, vocab_size: int, ranked: list[str]) -> dict[str, int]:
    """The whole vocabulary: fixed tokens, ``ranked`` (best first), ``<unused_ID>`` for what is left.

    Inside a group of free IDs tokens stand longest first, then by code point; in the compact layout
    characters stand before n-grams.
    """
    vocabulary = fixed_tokens(layout)
    start = 0
    for ids in free_ids(layout, vocab_size):
        group = sorted(ranked[start : start + len(ids)], key=longest_first)
        if layout == "compact":
            group.sort(key=lambda token: len(token) > 1)
        vocabulary.update(zip(group, ids, strict=False))
        start += len(ids)
    taken = set(vocabulary.values())
    vocabulary.update({f"<unused_{i}>": i for i in range(vocab_size) if i not in taken})
    return vocabulary


def longest_first(token: str) -> tuple[int, str]:
    """Sort key of the paper's order: longest in characters first, then by code points."""
    return -len(token), token


def is_reserved(token: str) -> bool:
    """Whether ``token`` is a name and not text: special, unused, or read as a byte when decoding."""
    return token in SPECIAL_TOKENS or re.fullmatch(r"<0x.*>|<unused_\d+>", token, re.DOTALL) is not None


def layout_of(vocabulary: dict[str, int]) -> LayoutName | None:
    """The layout of a vocabulary, or None if it is not one of ours."""
    for name in get_args(LayoutName):
        if all(vocabulary.get(token) == i for token, i in fixed_tokens(name).items()):
            return name
    return None
