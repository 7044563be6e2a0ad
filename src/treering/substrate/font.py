"""GNU Unifont's bitmaps as byte columns: a text is drawn by listing the columns of its characters."""

from __future__ import annotations

import lzma
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

    def has(self, text: str) -> bool:
        """Whether the font draws every character of a text (a space has a glyph, which is blank)."""
        return all(character in self.glyphs for character in text)

    def layout(self, text: str) -> list[int]:
        """Column indices of the characters side by side; one the font lacks is a blank of full width."""
        return [column for character in text for column in self.glyphs.get(character, MISSING)]


@cache
def unifont() -> Font:
    """The embedded GNU Unifont, read from its ``.hex`` file: ``code point:bits`` a line."""
    packed = resources.files("treering.substrate").joinpath(f"{NAME}.hex.xz").read_bytes()
    entries = [line.split(":") for line in lzma.decompress(packed).decode("ascii").splitlines()]
    columns = [np.zeros((1, HEIGHT), dtype=np.uint8)]
    glyphs: dict[str, tuple[int, ...]] = {}
    first = 1
    for wide in (1, 2):
        same = [(int(code, 16), bits) for code, bits in entries if len(bits) == 2 * HEIGHT * wide]
        rows = np.frombuffer(bytes.fromhex("".join(bits for _, bits in same)), dtype=np.uint8)
        columns.append(rows.reshape(-1, HEIGHT, wide).transpose(0, 2, 1).reshape(-1, HEIGHT))
        for code, _ in same:
            glyphs[chr(code)] = tuple(range(first, first + wide))
            first += wide
    return Font(np.concatenate(columns), glyphs)
