"""Visual Unicode glyphs (paper, section "frozen substrate"): the text of every token, drawn into one square
cell.

Everything here is exact integer arithmetic, so the bits are the same on every machine.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import gcd

import numpy as np
from transformers import PreTrainedTokenizerFast

from treering.substrate.arithmetic import one_thread, product
from treering.substrate.font import COLUMN, HEIGHT, Font, unifont

CHUNK = 1 << 20  # pixels drawn at a time: most of the work space stays in the cache


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text that each token ID stands for, one per ID up to the highest; an ID without a token is ``""``.

    - Special and other added tokens: their name, as it is written.
    - Byte-level vocabularies (GPT-2 and its kin): the bytes read as UTF-8; bytes that are no whole character
      are written ``<0xE4>``.
    - SentencePiece vocabularies: ``▁`` is a space; byte tokens keep their name ``<0xE4>``.
    - WordPiece: a continuation ``##ing`` is its text ``ing``. An end-of-word mark ``</w>`` is a space.
    - Any other: the token itself.
    """
    spelling = _spelling(json.loads(tokenizer.backend_tokenizer.to_str()))
    vocabulary = tokenizer.get_vocab()
    texts = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        texts[index] = spelling(token)
    for index, added in tokenizer.added_tokens_decoder.items():
        texts[index] = added.content
    return texts


def cell_size(d_model: int) -> int:
    """Pixels on a side of the cell: the paper's 32 up to d_model 1,024, 64 up to 4,096; then enough."""
    cell = 32
    while cell * cell < d_model:
        cell += 32
    return cell


@one_thread()
def draw(texts: Sequence[str], cell: int, font: Font | None = None) -> np.ndarray:
    """Draw each text into a square cell: ``[text, cell²]`` uint8 of 0 and 1, pixels in row order.

    The glyphs stand side by side, are resized to ``cell`` by ``cell`` and thresholded at half. The resize is
    the bilinear filter of image libraries, whose triangle widens when an image shrinks, in whole numbers.
    A text of no width is blank.
    """
    font = font or unifont()
    by_width: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for row, text in enumerate(texts):
        layout = font.layout(text)
        if any(layout):
            by_width[len(layout)].append((row, layout))
    cells = np.zeros((len(texts), cell * cell), dtype=np.uint8)
    down = _triangle(HEIGHT, cell)  # [16, cell]
    for width, drawn in sorted(by_width.items()):
        across = _triangle(width * COLUMN, cell)  # [pixels, cell]
        full = np.multiply.outer(down.sum(axis=0), across.sum(axis=0))  # the sum of weights where all is ink
        kind = np.float32 if full.max() < 1 << 24 else np.float64  # whole numbers, exact in any order of summation
        down_weights, across_weights, half = down.T.astype(kind), across.astype(kind), (full / 2).astype(kind)
        step = max(1, CHUNK // (HEIGHT * width * COLUMN + cell * cell))
        for start in range(0, len(drawn), step):
            part = drawn[start : start + step]
            strips = font.columns[np.array([layout for _, layout in part])]  # [text, column, 16]
            ink = np.unpackbits(strips.transpose(0, 2, 1), axis=2)  # [text, 16, pixels]
            narrow = product(ink.reshape(-1, width * COLUMN).astype(kind), across_weights)  # [text · 16, cell (x)]
            total = product(down_weights, narrow.reshape(len(part), HEIGHT, cell))  # [text, cell (y), cell (x)]
            cells[[row for row, _ in part]] = (total >= half).reshape(len(part), -1)
    return cells


def look_alikes(cells: np.ndarray) -> list[list[int]]:
    """Groups of two or more rows whose cells ``[token, pixel]`` are identical, in ascending order of ID."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, packed in enumerate(np.packbits(cells, axis=1)):
        groups[packed.tobytes()].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _triangle(size: int, cell: int) -> np.ndarray:
    """Integer weights ``[size, cell]`` of the antialiased bilinear filter, up to a common factor.

    Output pixel o is centred at (o + ½)·size/cell; a source pixel x counts max(0, 1 − distance / max(1,
    size/cell)). Multiplied by 2·max(size, cell) every weight is a whole number.
    """
    sources, targets = 2 * np.arange(size)[:, None] + 1, 2 * np.arange(cell)[None, :] + 1
    weights = np.maximum(0, 2 * max(size, cell) - np.abs(sources * cell - targets * size))
    return (weights // gcd(*np.unique(weights).tolist())).astype(np.float64)


def _spelling(backend: dict) -> Callable[[str], str]:
    """How this tokenizer's file spells text: a function from a token to its text."""
    parts = [part for key in ("normalizer", "pre_tokenizer", "decoder") for part in _components(backend.get(key))]
    model = backend["model"]
    byte_level = any(part["type"] == "ByteLevel" for part in parts)
    spaces = {part["replacement"] for part in parts if part["type"] == "Metaspace"}
    for part in (part for part in parts if part["type"] == "Replace"):
        pattern, content = part["pattern"].get("String"), part["content"]
        if content == " " and pattern:  # a decoder that turns ▁ into a space
            spaces.add(pattern)
        elif pattern == " " and content:  # a normalizer that turns a space into ▁
            spaces.add(content)
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""

    def text(token: str) -> str:
        space = ""
        if prefix and token != prefix:
            token = token.removeprefix(prefix)
        if suffix and token.endswith(suffix):
            token, space = token.removesuffix(suffix), " "
        if byte_level:
            token = _from_bytes(token)
        for mark in spaces:
            token = token.replace(mark, " ")
        return token + space

    return text


def _components(part: dict | None) -> Iterator[dict]:
    """The steps of a tokenizer component, sequences within sequences laid flat."""
    if not part:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(key, ()):
            yield from _components(step)


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes: printable Latin-1 is itself, the others are U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_bytes(token: str) -> str:
    """Read a byte-level token as UTF-8; bytes that are not part of a whole character become ``<0xNN>``."""
    alphabet = _byte_alphabet()
    if not all(character in alphabet for character in token):
        return token  # not spelt in bytes: an added token that the file lists as an ordinary one
    data = bytes(alphabet[character] for character in token)
    text = ""
    while data:
        try:
            return text + data.decode("utf-8")
        except UnicodeDecodeError as error:
            text += data[: error.start].decode("utf-8")
            text += "".join(f"<0x{byte:02X}>" for byte in data[error.start : error.end])
            data = data[error.end :]
    return text
