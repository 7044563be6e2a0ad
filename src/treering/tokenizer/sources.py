"""Training texts by source: read again and again without holding them in memory, in equal shares."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from treering.errors import TreeringError
from treering.tokenizer.loading import require_unicode

CHUNK = 1_000_000
"""A longer text is read in chunks of so many characters: that bounds memory and hardly changes a count."""


@dataclass(frozen=True)
class Source:
    """One language's texts, and how often each character occurs in them."""

    texts: Iterable[str]
    characters: Counter[str]
    size: int  # characters in all

    def chunks(self) -> Iterator[str]:
        """The texts, the long ones in pieces."""
        for text in self.texts:
            for start in range(0, len(text), CHUNK):
                yield text[start : start + CHUNK]


def survey(texts: Mapping[str, Iterable[str]]) -> list[Source]:
    """Read every source once; a one-shot iterator is copied to a temporary file to be read again.

    Raises:
        TreeringError: there is no source, a source has no text, or a text is not a Unicode string.
    """
    if not isinstance(texts, Mapping) or not texts:
        raise TreeringError('Give the training texts by source, such as {"en": [text, …], "ru": [text, …]}.')
    return [_survey(name, source) for name, source in texts.items()]


def _survey(name: str, texts: Iterable[str]) -> Source:
    if isinstance(texts, str):
        raise TreeringError(f"Source {name!r} is one string; give a list (or another iterable) of texts.")
    if isinstance(texts, Iterator):
        texts = _Spool(_checked(name, texts))
    characters: Counter[str] = Counter()
    for text in _checked(name, texts):
        characters.update(text)
    if not characters:
        raise TreeringError(f"Source {name!r} holds no text. Check that it was read as intended, or leave it out.")
    return Source(texts, characters, sum(characters.values()))


def _checked(name: str, texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TreeringError(f"Text {number} of source {name!r} is a {type(text).__name__}, not a string.")
        require_unicode(text, f"text {number} of source {name!r}")
        yield text


class _Spool:
    """Texts in a temporary file, which is gone when this object is."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 — it lives as long as this object
        self._sizes = array("Q", (self._file.write(text.encode("utf-8")) for text in texts))

    def __iter__(self) -> Iterator[str]:
        position = 0
        for size in self._sizes:
            self._file.seek(position)
            yield self._file.read(size).decode("utf-8")
            position += size


def in_equal_shares(sources: list[Source]) -> Iterator[str]:
    """Every source's texts, the smaller ones repeated until each has about as many characters as the largest.

    A fraction of a repetition takes texts evenly from the whole source, always the same ones.
    """
    target = max(source.size for source in sources)
    for source in sources:
        repeats, rest = divmod(target, source.size)
        for _ in range(repeats):
            yield from source.chunks()
        owed = 0
        for text in source.chunks() if rest else ():
            owed += len(text) * rest
            if 2 * owed >= len(text) * source.size:
                owed -= len(text) * source.size
                yield text
