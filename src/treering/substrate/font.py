"""GNU Unifont's bitmaps as byte columns: a text is drawn by listing the columns of its characters."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

NAME = "unifont-15.0.01"
HEIGHT = 16  # pixels
COLUMN = 8  # pixels in one byte column; a glyph is one column wide (half width) or two (full width)
MISSING = (0, 0)


@dataclass(frozen=True, eq=False)
class Font:
    """A bitmap font of the Basic Multilingual Plane.

    columns: ``[column, 16]`` uint8, the 8 pixels of each row, leftmost in the highest bit; column 0 is blank.
    glyphs: for every character that the font has, the indices of its columns.
    """

    columns: np.ndarray
    glyphs: dict[str, tuple[int, ...]]

    def lacking(self, texts: Sequence[str]) -> int:
        """How many texts have a character that the font does not draw (a space has a glyph, a blank)."""
        missing = set().union(*texts) - self.glyphs.keys()
        return sum(not missing.isdisjoint(text) for text in texts)

    def layout(self, text: str) -> list[int]:
        """Column indices of the characters side by side; one the font lacks is a blank of full width."""
        return [column for character in text for column in self.glyphs.get(character, MISSING)]


@cache
def unifont() -> Font:
    """The embedded GNU Unifont, read from its ``.hex`` file: ``code point:bits`` a line."""
    packed = resources.files("treering.substrate").joinpath(f"{NAME}.hex.xz").read_bytes()
    lines = lzma.decompress(packed).decode("ascii").splitlines()
    columns = [np.zeros((1, HEIGHT), dtype=np.uint8)]
    glyphs: dict[str, tuple[int, ...]] = {}
    first = 1
    for wide in (1, 2):
        same = [line for line in lines if len(line) == 5 + 2 * HEIGHT * wide]
        rows = np.frombuffer(bytes.fromhex("".join([line[5:] for line in same])), dtype=np.uint8)
        columns.append(rows.reshape(-1, HEIGHT, wide).transpose(0, 2, 1).reshape(-1, HEIGHT))
        for line in same:
            glyphs[chr(int(line[:4], 16))] = (first,) if wide == 1 else (first, first + 1)
            first += wide
    return Font(np.concatenate(columns), glyphs)
