"""Paragraphs that stand in held-out documents too: found by hash, and cut out of the other documents.

Pages, manuals and laws share paragraphs word for word, so that a model trained on the others has read much of a
held-out document. Lee et al. 2022 (Deduplicating Training Data Makes Language Models Better) find passages of the
validation set in the training sets of their day and cut repeated spans, as C4 does by its spans of three sentences
(Raffel et al. 2020); GPT-3's authors cut what overlaps with their benchmarks (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

DUPLICATE_BYTES = 16
"""UTF-8 bytes, normalised, from which a paragraph counts; shorter ones are phrases of the language ("Example")."""

_PIECE = 1_024  # characters normalised at once: a long run of combining marks takes quadratic time


def normalise(paragraph: str) -> bytes:
    """The paragraph in NFKC, its case folded, its white space collapsed, in UTF-8: near-duplicates become equal."""
    plain = " ".join(paragraph.split())
    if not plain.isascii():
        pieces = (plain[start : start + _PIECE] for start in range(0, len(plain), _PIECE))
        composed = "".join([unicodedata.normalize("NFKC", piece) for piece in pieces])
        if composed != plain:  # some of its characters become white space
            plain = " ".join(composed.split())
    return plain.casefold().encode("utf-8")


class HeldOutParagraphs:
    """Held-out documents' paragraphs and whole texts as 64-bit hashes, gathered for an `Index`.

    `Overlap` counts the bytes of the ``measured`` ones. Memory: 16 bytes a paragraph.
    """

    def __init__(self, *, measured: bool) -> None:
        self.hashes, self.sizes = array("Q"), array("Q")
        self._measured = measured

    def add(self, text: str) -> None:
        """Gather a document."""
        lines = text.split("\n")
        normalised = [normalise(line) for line in lines]
        for line, plain in zip(lines, normalised, strict=True):
            if plain:
                self._append(plain, len(line.encode("utf-8")) if self._measured else 0)
        self._append(_whole(normalised), 0, whole=True)

    def _append(self, normalised: bytes, size: int, whole: bool = False) -> None:
        self.hashes.append(_hash(normalised, whole))
        self.sizes.append(size)


class Index:
    """Each paragraph and each whole text of held-out documents at a place of its own. Memory: 16 bytes each.

    Two texts have the same hash by accident with a chance of 2^-64: among 10^8 held-out and 10^10 other paragraphs
    about one in twenty corpora loses one paragraph by it.
    """

    def __init__(self, *held_out: HeldOutParagraphs) -> None:
        hashes = np.concatenate([np.array(each.hashes, np.uint64) for each in held_out] or [np.empty(0, np.uint64)])
        sizes = np.concatenate([np.array(each.sizes, np.float64) for each in held_out] or [np.empty(0)])
        distinct, places = np.unique(hashes, return_inverse=True)
        self._hashes = array("Q", distinct.tobytes())
        self.sizes = np.bincount(places, sizes, len(distinct)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, normalised: bytes, whole: bool = False) -> int | None:
        """The place of a normalised paragraph or ``whole`` text, or None if no held-out document has it."""
        hashed = _hash(normalised, whole)
        place = bisect_left(self._hashes, hashed)
        return place if place < len(self._hashes) and self._hashes[place] == hashed else None


@dataclass(frozen=True, slots=True)
class Cut:
    """What `cut` left of a document.

    Attributes:
        text: the rest; empty if the document is left out whole.
        paragraphs: how many were cut out of it; 0 if it is left out whole.
        found: places in the index of all its paragraphs that stand there, of whatever length.
        left: those of them that still stand in ``text``.
    """

    text: str
    paragraphs: int
    found: list[int]
    left: list[int]


def cut(text: str, index: Index, duplicate_bytes: int = DUPLICATE_BYTES) -> Cut:
    """A document without the paragraphs (lines) that stand in held-out documents.

    A paragraph counts if its normalised form has at least ``duplicate_bytes`` UTF-8 bytes. A document that loses half
    of its bytes or more, or that equals a held-out one as a whole, however short, is left out. 0 keeps everything.
    """
    lines = text.split("\n")
    normalised = [normalise(line) for line in lines]
    places = [index.find(plain) if plain else None for plain in normalised]
    found = [place for place in places if place is not None]
    if not duplicate_bytes:
        return Cut(text, 0, found, found)
    keep = [place is None or len(plain) < duplicate_bytes for place, plain in zip(places, normalised, strict=True)]
    rest = text if all(keep) else _without(lines, keep)
    half = 2 * len(rest.encode("utf-8")) <= len(text.encode("utf-8"))
    wholes = {_whole(normalised), _whole(itertools.compress(normalised, keep))}
    if half or not rest.strip() or any(index.find(whole, whole=True) is not None for whole in wholes):
        return Cut("", 0, found, [])
    left = [place for place, kept in zip(places, keep, strict=True) if kept and place is not None]
    return Cut(rest, keep.count(False), found, left)


class Overlap:
    """How many bytes of the measured held-out paragraphs stand in other documents, before and after these are cut.

    Memory: 2 bytes a distinct held-out paragraph.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._before, self._after = bytearray(len(index)), bytearray(len(index))

    def count(self, cut: Cut) -> None:
        """Take one other document into account."""
        for place in cut.found:
            self._before[place] = 1
        for place in cut.left:
            self._after[place] = 1

    @property
    def paragraph_bytes(self) -> int:
        """Of all measured paragraphs."""
        return int(self._index.sizes.sum())

    @property
    def before(self) -> int:
        """Bytes that stood in other documents as they were read."""
        return int(self._index.sizes[np.frombuffer(self._before, bool)].sum())

    @property
    def after(self) -> int:
        """Bytes that still stand in what is left of other documents."""
        return int(self._index.sizes[np.frombuffer(self._after, bool)].sum())


def _hash(normalised: bytes, whole: bool) -> int:
    salt = b"whole" if whole else b""  # a document that is just a heading is no copy of a page with that heading
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8, salt=salt).digest(), "big")


def _whole(normalised: Iterable[bytes]) -> bytes:
    return b" ".join(filter(None, normalised))


def _without(lines: list[str], keep: list[bool]) -> str:
    """The lines to keep; of the blank lines before and after a gap, only those before it."""
    rest: list[str] = []
    gap = False
    for line, kept in zip(lines, keep, strict=True):
        if not kept:
            gap = True
        elif line.strip() or not gap or (rest and rest[-1].strip()):
            rest.append(line)
            gap = gap and not line.strip()
    while gap and rest and not rest[-1].strip():
        rest.pop()
    return "\n".join(rest)
