"""From cells of bits to rows of numbers: one integer matrix per projection, one exact way to apply it.

A projection is an integer matrix Q ``[pixel, d_model]``. With cells X ``[token, pixel]`` of 0 and 1 and their
sums s over the vocabulary V, a row is X Q − round(sᵀQ / V): the centred cells, projected. All of it is whole
numbers small enough that floating-point matrix products are exact in any order of summation; only the last
step, division by the row's length, rounds.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

from treering.errors import TreeringError
from treering.substrate.arithmetic import one_thread, product
from treering.substrate.codes import row_lengths, token_codes, unit_rows
from treering.substrate.eigen import Basis, eigenbasis
from treering.substrate.font import HEIGHT

CHUNK = 1 << 19  # numbers in flight at a time: most of the work space stays in the cache
UNIT = 1 << 12  # scale of the integer projections, so that rounding the mean costs little
STRIP = 256  # pixels of a covariance counted at a time
MARK = 8  # a mark has 1/8 of the length of the row that it tells apart


class Source(NamedTuple):
    """Tokens whose cells are made of few bits: pixel p of a cell is bit ``parent[p]``.

    tokens: ``[token]`` IDs. bits: ``[token, bit]`` uint8. parent: ``[pixel]`` indices of bits.
    """

    tokens: np.ndarray
    bits: np.ndarray
    parent: np.ndarray


def sources(cells: np.ndarray) -> list[Source]:
    """Part the tokens of cells ``[token, pixel]`` into those that need all their pixels and those that do not.

    A full-width glyph in a cell of 16 k pixels is its bitmap with every pixel k × k times, so 256 bits say it
    all. Most of a Unicode vocabulary is such: a quarter of the arithmetic at 32 × 32, a sixteenth at 64 × 64.
    """
    tokens, pixels = cells.shape
    cell = math.isqrt(pixels)
    times = cell // HEIGHT
    enlarged = np.zeros(tokens, dtype=bool)
    bits = np.zeros((tokens, 0), dtype=np.uint8)
    if times > 1 and cell == times * HEIGHT and cell * cell == pixels:
        bits = cells.reshape(tokens, HEIGHT, times, HEIGHT, times)[:, :, 0, :, 0]
        step = max(1, CHUNK // pixels)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            again = bits[part].repeat(times, axis=1).repeat(times, axis=2)
            enlarged[part] = (again.reshape(-1, pixels) == cells[part]).all(axis=1)
    few, all_ = np.flatnonzero(enlarged), np.flatnonzero(~enlarged)
    found = [Source(all_, cells[all_], np.arange(pixels))]
    if len(few):
        row, column = np.divmod(np.arange(pixels), cell)
        parent = row // times * HEIGHT + column // times
        found.append(Source(few, bits[few].reshape(len(few), -1), parent))
    return [source for source in found if len(source.tokens)]


@one_thread()
def covariance(cells: np.ndarray) -> np.ndarray:
    """V·XᵀX − s sᵀ of cells ``[token, pixel]``: V² times the covariance, ``[pixel, pixel]`` int64, exact."""
    tokens, pixels = cells.shape
    both = np.zeros((pixels, pixels), dtype=np.int64)  # how many tokens have ink in both pixels
    for _, bits, parent in sources(cells):
        counts = np.zeros((bits.shape[1], bits.shape[1]), dtype=np.int64)
        step = max(1, 16 * CHUNK // pixels)  # far below 2^24 tokens, up to which float32 counts exactly
        for start in range(0, len(bits), step):
            part = bits[start : start + step].astype(np.float32)
            for left in range(0, len(counts), STRIP):  # from the diagonal rightwards: the rest is its mirror image
                strip = product(part[:, left : left + STRIP].T, part[:, left:])
                counts[left : left + STRIP, left:] += strip.astype(np.int64)
        upper = np.triu(counts)
        both += (upper + np.triu(counts, 1).T)[np.ix_(parent, parent)]
    ink = both.diagonal()
    return tokens * both - np.outer(ink, ink)


def pca_basis(cells: np.ndarray, d_model: int) -> tuple[np.ndarray, Basis]:
    """Q of principal component analysis over the vocabulary, ``[pixel, d_model]`` int64, and its origin.

    Columns beyond the rank are zero.
    """
    basis = eigenbasis(covariance(cells), d_model)
    return np.pad(basis.vectors, ((0, 0), (0, d_model - basis.vectors.shape[1]))), basis


def hadamard_basis(pixels: int, d_model: int) -> np.ndarray:
    """Q of a subsampled randomised Hadamard transform, ``[pixel, d_model]`` int64 of ±4096.

    Sylvester's matrix of the next power of two, its columns (pixels) flipped in sign and its rows (features)
    chosen and ordered by SHA-256 of a counter: fixed for ever, alike for everybody.
    """
    size = 1 << max(pixels - 1, d_model - 1, 1).bit_length()
    flips = np.array([_hash(f"flip {pixel}")[0] & 1 for pixel in range(pixels)]) * 2 - 1
    rows = np.array(sorted(range(size), key=lambda row: _hash(f"row {row}"))[:d_model])
    overlap = np.arange(pixels)[:, None] & rows[None, :]
    odd = np.zeros_like(overlap)
    while overlap.any():
        odd ^= overlap & 1
        overlap >>= 1
    return UNIT * flips[:, None] * (1 - 2 * odd)


def pixel_basis(pixels: int, d_model: int) -> np.ndarray:
    """Q of the plain centred pixels, ``[pixel, d_model]`` int64; columns beyond the pixels are zero.

    Raises:
        TreeringError: there are more pixels than columns.
    """
    if pixels > d_model:
        raise TreeringError(
            f"A cell of {pixels} pixels does not fit d_model {d_model}; choose a smaller cell, or another projection."
        )
    return UNIT * np.eye(pixels, d_model, dtype=np.int64)


@one_thread()
def project(cells: np.ndarray, basis: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows of length one ``[token, d_model]`` float32 from cells ``[token, pixel]`` and Q.

    Rows where ``marked`` ``[token]`` is true get the binary code of their token ID added, at about 1/8 of the
    row's length, before they are normalised. A row that the projection leaves without any length is its
    token's code alone; returns how many.
    """
    tokens, d_model = len(cells), basis.shape[1]
    found = sources(cells)
    ink = sum(bits.sum(axis=0, dtype=np.int64)[parent] for _, bits, parent in found)
    mean = (2 * (ink @ basis) + tokens) // (2 * tokens)
    reach = int(np.abs(basis).sum(axis=0).max())  # no partial sum of a row's products goes beyond
    kind = np.float32 if reach <= 1 << 24 else np.float64
    used = int(basis.any(axis=0).nonzero()[0].max(initial=-1)) + 1  # the columns after these are zero
    codes = token_codes(tokens)
    rows = np.zeros((tokens, d_model), dtype=np.float32)
    empty = 0
    for members, bits, parent in found:
        order = np.argsort(parent, kind="stable")
        first = np.searchsorted(parent[order], np.arange(bits.shape[1]))
        weights = np.add.reduceat(basis[order, :used], first, axis=0).astype(kind)  # [bit, used column]
        step = max(1, CHUNK // max(bits.shape[1], d_model))
        for start in range(0, len(bits), step):
            part = members[start : start + step]
            whole = product(bits[start : start + step].astype(kind), weights)
            whole -= mean[:used].astype(kind)  # still whole numbers within reach
            lengths = row_lengths(whole.astype(np.float64))
            changed = np.flatnonzero((lengths == 0) | marked[part])
            unmarked = whole[changed].astype(np.float64)
            whole /= np.where(lengths > 0, lengths, 1).astype(kind)[:, None]
            rows[part, :used] = whole
            if len(changed):
                strength = np.maximum(1, np.rint(lengths[changed] / (MARK * np.sqrt(np.float64(d_model)))))
                mark = strength[:, None] * codes[part[changed]][:, np.arange(d_model) % codes.shape[1]]
                mark[:, :used] += unmarked
                rows[part[changed]] = unit_rows(mark)
            empty += int((lengths == 0).sum())
    return rows, empty


def _hash(text: str) -> bytes:
    return hashlib.sha256(f"treering hadamard {text}".encode("ascii")).digest()
