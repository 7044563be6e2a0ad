"""GGUF files (llama.cpp's: configuration, tokenizer and quantised weights in one): checked, before they are read.

transformers reads them; the header is walked here first, because what a file claims costs time and memory before its
reader finds that the rest is missing. Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from treering.errors import TreeringError
from treering.reading import printable
from treering.voice import tells_progress

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By the number of a value's kind, how it is packed."""
STRING, ARRAY = 8, 9
"""The kinds that are no number."""

MOST_NAME = 2**16
"""Bytes of a field's or a tensor's name."""


def is_gguf(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this names a GGUF file here, by its ending."""
    name = os.fspath(name_or_path)
    return name.endswith(".gguf") and not name.startswith("hub:") and not Path(name).is_dir()


def require_gguf(path: str | os.PathLike[str]) -> list[int]:
    """Check that a GGUF file can be read and is whole.

    Returns:
        How many numbers each of its tensors has.

    Raises:
        TreeringError: it is not there, is no GGUF file, is damaged or cut short, or the package ``gguf`` is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise TreeringError(f"There is no file {printable(str(path))}.")
    if find_spec("gguf") is None:
        raise TreeringError("To read GGUF files, install the package gguf: pip install 'treering[gguf]'")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise TreeringError(f"{printable(str(path))} is no GGUF file: it does not begin with GGUF.")
        try:
            return _Header(file, path.stat().st_size).sizes()
        except (ValueError, struct.error, UnicodeDecodeError) as error:
            raise TreeringError(
                f"{printable(str(path))} is damaged or cut short: {printable(str(error))}. Copy or download it again."
            ) from None


class _Header:
    """The header of an open GGUF file of so many bytes, read from behind its magic."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def sizes(self) -> list[int]:
        """Numbers of each tensor, all of which the file holds.

        Raises:
            ValueError: it does not, or something is written that no reader can make sense of.
        """
        from gguf import GGML_QUANT_SIZES

        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 are known")
        tensors, fields = self._number("Q"), self._number("Q")
        known = {self._string(MOST_NAME): self._value() for _ in self._counted(fields, 8 + 4 + 1)}
        if not known.get("general.architecture"):
            raise ValueError("it does not name its architecture")
        ends, sizes = [0], list[int]()
        for _ in self._counted(tensors, 8 + 4 + 4 + 8):
            name = self._string(MOST_NAME)
            shape = [self._number("Q") for _ in range(self._at_most(self._number("I"), 8))]
            kind, offset, numbers = self._number("I"), self._number("Q"), math.prod(shape)
            if kind not in GGML_QUANT_SIZES:
                raise ValueError(f"the tensor {name} is stored in a way ({kind}) that is not known")
            block, block_bytes = GGML_QUANT_SIZES[kind]
            ends.append(offset + numbers // block * block_bytes)
            sizes.append(numbers)
        alignment = known.get("general.alignment") or 32
        begin = -(-self.file.tell() // alignment) * alignment
        if begin + max(ends) > self.size:
            raise ValueError(f"its tensors need {begin + max(ends):,} bytes, and it has {self.size:,}")
        return sizes

    def _value(self) -> Any:
        """The value of a field; lists are passed over."""
        kind = self._number("I")
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == STRING:
            return self._string(self.size)
        if kind != ARRAY:
            raise ValueError(f"a field is of a kind ({kind}) that there is not")
        kind, count = self._number("I"), self._number("Q")
        if kind in NUMBERS:
            self._skip(count * struct.calcsize(NUMBERS[kind]))
        elif kind == STRING:
            for _ in self._counted(count, 8):
                self._skip(self._number("Q"))
        else:
            raise ValueError(f"a list is of a kind ({kind}) that there is not")
        return None

    def _counted(self, count: int, least: int) -> range:
        """So many entries of ``least`` bytes or more, if there is room for them."""
        self._at_most(count * least, self.size - self.file.tell())
        return range(count)

    def _string(self, most: int) -> str:
        return self._read(self._at_most(self._number("Q"), most)).decode("utf-8")

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._read(struct.calcsize(code)))[0]

    def _read(self, count: int) -> bytes:
        self._at_most(count, self.size - self.file.tell())
        return self.file.read(count)

    def _skip(self, count: int) -> None:
        self.file.seek(self._at_most(count, self.size - self.file.tell()), os.SEEK_CUR)

    def _at_most(self, count: int, most: int) -> int:
        if count > most:
            raise ValueError(f"its header asks for more than there is, before byte {self.file.tell():,}")
        return count


@contextmanager
def long_reading(what: str) -> Iterator[None]:
    """Tell people what takes so long, if it does."""
    console = Console(stderr=True, quiet=not tells_progress(), soft_wrap=True)
    message = f"reading {printable(what)} (this can take minutes; a model that was saved as a directory loads at once)"
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message, markup=False, highlight=False)
        yield
