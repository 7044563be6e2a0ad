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


@dataclass(frozen=True, eq=False)
class Font:
    """A bitmap font of the Basic Multilingual Plane.

    columns: ``[column, 16]`` uint8, the 8 pixels of each row, leftmost in the highest bit; column 0 is blank.
    glyphs: for every code point up to U+FFFF the indices of its columns; empty where the font has no glyph.
    """

    columns: np.ndarray
    glyphs: list[tuple[int, ...]]

    def has(self, character: str) -> bool:
        """Whether the font draws this character (a space has a glyph, which is blank)."""
        code = ord(character)
        return code < len(self.glyphs) and bool(self.glyphs[code])

    def layout(self, text: str) -> list[int]:
        """Column indices of the characters side by side; one the font lacks is a blank of full width."""
        indices: list[int] = []
        for character in text:
            code = ord(character)
            indices.extend((self.glyphs[code] if code < len(self.glyphs) else ()) or (0, 0))
        return indices


@cache
def unifont() -> Font:
    """The embedded GNU Unifont, read from its ``.hex`` file: ``code point:bits`` a line."""
    packed = resources.files("treering.substrate").joinpath(f"{NAME}.hex.xz").read_bytes()
    columns = [bytes(HEIGHT)]
    glyphs: list[tuple[int, ...]] = [()] * 0x10000
    for line in lzma.decompress(packed).decode("ascii").splitlines():
        code, digits = line.split(":")
        rows = bytes.fromhex(digits)
        wide = len(rows) // HEIGHT  # bytes in a row
        glyphs[int(code, 16)] = tuple(range(len(columns), len(columns) + wide))
        columns.extend(rows[i::wide] for i in range(wide))
    return Font(np.frombuffer(b"".join(columns), dtype=np.uint8).reshape(-1, HEIGHT), glyphs)
