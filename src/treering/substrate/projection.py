"""From cells of bits to rows of numbers: one integer matrix per projection, one exact way to apply it.

A projection is an integer matrix Q ``[pixel, d_model]``. With cells X ``[token, pixel]`` of 0 and 1 and their
sums s over the vocabulary V, a row is X Q − round(sᵀQ / V): the centred cells, projected. All of it is whole
numbers small enough that floating-point matrix products are exact in any order of summation; only the last
step, division by the row's length, rounds.
"""

from __future__ import annotations

import hashlib

import numpy as np

from treering.errors import TreeringError
from treering.substrate.codes import row_lengths, token_codes
from treering.substrate.eigen import Basis, eigenbasis

CHUNK = 1 << 21  # numbers in flight at a time: some 30 MiB of work space, most of it in the cache
UNIT = 1 << 12  # scale of the integer projections, so that rounding the mean costs little
MARK = 8  # a mark has 1/8 of the length of the row that it tells apart


def covariance(cells: np.ndarray) -> np.ndarray:
    """V·XᵀX − s sᵀ of cells ``[token, pixel]``: V² times the covariance, ``[pixel, pixel]`` int64, exact."""
    tokens, pixels = cells.shape
    counts = np.zeros((pixels, pixels), dtype=np.float32 if tokens < 1 << 24 else np.float64)  # exact up to 2^24
    step = max(1, 4 * CHUNK // pixels)
    for start in range(0, tokens, step):
        part = cells[start : start + step].astype(np.float32)
        counts += part.T @ part
    ink = cells.sum(axis=0, dtype=np.int64)
    return tokens * counts.astype(np.int64) - np.outer(ink, ink)


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


def project(cells: np.ndarray, basis: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows of length one ``[token, d_model]`` float32 from cells ``[token, pixel]`` and Q.

    Rows where ``marked`` ``[token]`` is true get the binary code of their token ID added, at about 1/8 of the
    row's length, before they are normalised. A row that the projection leaves without any length is its
    token's code alone; returns how many.
    """
    (tokens, pixels), d_model = cells.shape, basis.shape[1]
    mean = (2 * (cells.sum(axis=0, dtype=np.int64) @ basis) + tokens) // (2 * tokens)
    reach = int(np.abs(basis).sum(axis=0).max())  # no partial sum of a row's products goes beyond
    used = int(basis.any(axis=0).nonzero()[0].max(initial=-1)) + 1  # the columns after these are zero
    weights = basis[:, :used].astype(np.float32 if reach <= 1 << 24 else np.float64)
    codes = token_codes(tokens)
    rows = np.empty((tokens, d_model), dtype=np.float32)
    empty = 0
    step = max(1, CHUNK // max(pixels, d_model))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        whole = np.zeros((len(cells[part]), d_model))
        np.subtract(cells[part].astype(weights.dtype) @ weights, mean[:used], out=whole[:, :used])
        lengths = row_lengths(whole)
        lost, chosen = np.flatnonzero(lengths == 0), np.flatnonzero(marked[part])
        changed = np.union1d(lost, chosen)
        strength = np.maximum(1, np.rint(lengths[changed] / (MARK * np.sqrt(np.float64(d_model)))))
        repeated = codes[changed + start][:, np.arange(d_model) % codes.shape[1]]
        whole[changed] += strength[:, None] * repeated
        lengths[changed] = row_lengths(whole[changed])
        rows[part] = whole / lengths[:, None]
        empty += len(lost)
    return rows, empty


def _hash(text: str) -> bytes:
    return hashlib.sha256(f"treering hadamard {text}".encode("ascii")).digest()
