"""Whole documents cut to a model's context, for reading them with a model that is not being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A stretch of a document, ``tokens`` before ``scored_from`` being context only.

    The last token is only predicted, never read: a window has up to one token more than the model's context.
    """

    document: int
    tokens: list[int]
    scored_from: int


def windows(documents: Sequence[list[int]], start_token: int, context: int) -> Iterator[Window]:
    """Every token of each document scored once, after ``start_token``, with half a context before it or all there is.

    A document longer than ``context`` is read in windows that overlap by half.
    """
    for index, ids in enumerate(documents):
        tokens = [start_token, *ids]
        scored = 1
        while scored < len(tokens):
            start = 0 if scored == 1 else scored - context // 2
            end = min(len(tokens), start + context + 1)
            yield Window(index, tokens[start:end], scored - start)
            scored = end
