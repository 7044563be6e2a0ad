"""Eigenvectors of a symmetric integer matrix, known to far more digits than are kept.

LAPACK's eigenvectors depend in their last digits on the library, the processor and the number of threads, and
small gaps between eigenvalues turn last digits into first ones. So LAPACK only makes the first guess here.
Ogita and Aishima's iteration ("Iterative refinement for symmetric eigenvalue decomposition", Japan J. Indust.
Appl. Math. 35, 2018) doubles the correct digits of all eigenvectors at once, given products of more than
float64's precision; these are made of float64 products of short integers, which are exact in any order of
summation (Ozaki, Ogita, Oishi, Rump, Numer. Algorithms 59, 2012). Once every entry is known closely enough to
say how it rounds to the grid, the rounded eigenvectors are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FRACTION = 60  # vectors are held as int64 multiples of 2^-60
SLICE = 20  # bits of an integer slice: products of two, summed over ≤ 2^13 terms, stay below 2^53
GRID = 18  # bits kept of an eigenvector's entries
ROUNDS = 6
NEGLIGIBLE = 2.0**-32  # eigenvalues below this share of the largest count as zero
CLOSE = 2.0**-40  # gaps below this share of the largest eigenvalue cannot be resolved from a float64 guess

Guess = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Basis:
    """Rounded eigenvectors, largest eigenvalue first.

    vectors: ``[n, kept]`` int64, multiples of 2^-18; the largest entry of each is positive (the first of
        equals).
    values: ``[n]`` float64, all eigenvalues, those that count as zero set to zero.
    rank: eigenvalues that are not zero.
    unresolved: kept vectors whose eigenvalue is too near another for their direction to be certain.
    ambiguous: entries of the other vectors that lie too near the middle of two grid points.
    """

    vectors: np.ndarray
    values: np.ndarray
    rank: int
    unresolved: int
    ambiguous: int

    @property
    def certain(self) -> bool:
        """Whether another machine is bound to find the same integers."""
        return self.unresolved == 0 and self.ambiguous == 0


def eigenbasis(matrix: np.ndarray, keep: int, guess: Guess = np.linalg.eigh) -> Basis:
    """The leading ``keep`` eigenvectors of a positive semi-definite int64 matrix ``[n, n]``; fewer if its
    rank is lower.
    """
    n = len(matrix)
    values, start = guess(matrix.astype(np.float64))
    values = values[::-1].copy()
    if n == 0 or values[0] <= 0.5:  # the trace of an integer matrix: nothing, or at least one
        return Basis(np.zeros((n, 0), np.int64), np.zeros(n), 0, 0, 0)
    vectors = np.rint(np.ldexp(start[:, ::-1], FRACTION)).astype(np.int64)
    slices = _slices(matrix)
    worst = np.inf
    for _ in range(ROUNDS):
        vectors, values, bound = _refine(slices, vectors)
        rank = int((values > NEGLIGIBLE * values[0]).sum())
        bound = bound[: min(keep, rank)]
        unresolved, ambiguous, rounded = _round(vectors[:, : len(bound)], bound)
        previous, worst = worst, bound[np.isfinite(bound)].max(initial=0.0)
        settled = ambiguous == 0 and unresolved == np.isinf(bound).sum()
        if settled or worst > previous / 2:
            break
    if abs(values[rank - 1] / (NEGLIGIBLE * values[0]) - 1) < 1e-6 or (
        rank < n and abs(values[rank] / (NEGLIGIBLE * values[0]) - 1) < 1e-6
    ):
        unresolved += 1  # whether this eigenvalue counts as zero is itself a matter of rounding
    largest = np.take_along_axis(rounded, np.abs(rounded).argmax(axis=0)[None, :], axis=0)
    values = np.where(np.arange(n) < rank, values, 0.0)
    return Basis(np.where(largest < 0, -rounded, rounded), values, rank, unresolved, ambiguous)


def _refine(matrix: list[np.ndarray], vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One round of Ogita and Aishima's iteration.

    Takes the matrix as slices and the vectors X; returns better vectors, the eigenvalues, and for each vector
    a bound on the error of its entries (infinite where a near neighbour leaves its direction open).
    """
    parts = _slices(vectors, FRACTION)
    residual = _lacking_orthogonality(parts)  # R = I − XᵀX
    image = _image(matrix, parts)  # A X
    form = _form(parts, *image)  # S = Xᵀ A X
    values = form.diagonal() / (1 - residual.diagonal())
    gaps = values[None, :] - values[:, None]  # λ_j − λ_i
    near = np.abs(gaps) <= CLOSE * values.max()
    null = values <= NEGLIGIBLE * values.max()
    safe = np.where(near, 1.0, gaps)
    correction = np.where(near, residual / 2, (form + values * residual) / safe)

    # What the first-order correction neglects: products of two corrections, and what couples through near
    # neighbours.
    size = np.maximum(np.abs(correction), np.abs(correction.T))
    positive = np.maximum(values, 0)
    square = size @ size
    neglected = size @ (positive[:, None] * size) + (positive[:, None] + positive) * square
    coupled = np.where(near, np.abs(form), 0)
    np.fill_diagonal(coupled, 0)
    if coupled.any():
        neglected += 2 * coupled @ size
    arithmetic = 2.0**-70 * np.maximum(positive[:, None], positive)
    second = np.where(near, 3 * square, (3 * neglected + arithmetic) / np.abs(safe))
    bound = 4 * np.sqrt((second**2).sum(axis=0)) + 2.0**-57
    lonely = near.sum(axis=0) == 1
    bound[~lonely & ~null] = np.inf

    step = np.ldexp(vectors.astype(np.float64), -FRACTION) @ correction
    better = vectors + np.rint(np.ldexp(step, FRACTION)).astype(np.int64)
    order = np.argsort(-values, kind="stable")
    return better[:, order], values[order], bound[order]


def _round(vectors: np.ndarray, bound: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Round to the grid; count vectors without a bound, and entries whose rounding the bound leaves open."""
    unit = 1 << (FRACTION - GRID)
    open_ended = ~(bound < 2.0 ** -(GRID + 2))
    from_tie = np.abs((vectors & (unit - 1)) - unit // 2)
    slack = np.where(open_ended, -1.0, np.ldexp(np.where(open_ended, 0.0, bound), FRACTION))
    return int(open_ended.sum()), int((from_tie <= slack).sum()), (vectors + unit // 2) >> (FRACTION - GRID)


def _slices(whole: np.ndarray, bits: int | None = None) -> list[np.ndarray]:
    """Cut an int64 matrix into signed slices of 20 bits, highest first, as float64: Σ slice_k ·
    2^(20·(count−1−k)).
    """
    bits = bits or int(np.abs(whole).max(initial=0)).bit_length()
    slices = []
    for _ in range(max(1, -(-bits // SLICE)) - 1):
        low = ((whole + (1 << (SLICE - 1))) & ((1 << SLICE) - 1)) - (1 << (SLICE - 1))
        slices.append(low.astype(np.float64))
        whole = (whole - low) >> SLICE
    slices.append(whole.astype(np.float64))
    return slices[::-1]


class _Sum:
    """A running sum of float64 matrices that keeps what rounding would lose."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high = np.zeros(shape)
        self.low = np.zeros(shape)

    def add(self, term: np.ndarray) -> None:
        total = self.high + term
        back = total - self.high
        self.low += (self.high - (total - back)) + (term - back)  # Knuth's two-sum: the exact rounding error
        self.high = total


def _lacking_orthogonality(parts: list[np.ndarray]) -> np.ndarray:
    """R = I − XᵀX, products of slices down to 2^-100."""
    n = parts[0].shape[1]
    total = _Sum((n, n))
    total.add(np.eye(n))
    for level in range(2, 6):
        for i in range(len(parts)):
            j = level - 2 - i
            if not i <= j < len(parts):
                continue
            product = np.ldexp(parts[i].T @ parts[j], -SLICE * level)
            total.add(-product)
            if i != j:
                total.add(-product.T)
    return total.high + total.low


def _image(matrix: list[np.ndarray], parts: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """A X, cut into four slices of 20 bits below each column's own power of two (the exponents)."""
    total = _Sum(parts[0].shape)
    for i, a in enumerate(matrix):
        for j, x in enumerate(parts):
            total.add(np.ldexp(a @ x, SLICE * (len(matrix) - 1 - i) - SLICE * (j + 1)))
    high, low = total.high, total.low
    exponents = np.frexp(np.abs(high).max(axis=0))[1]
    high, low = np.ldexp(high, SLICE - exponents), np.ldexp(low, SLICE - exponents)
    slices = []
    for k in range(4):
        if k == 2:
            high = high + low  # the leading digits are gone: both parts fit one float64 now
        part = np.rint(high)
        slices.append(part)
        high, low = np.ldexp(high - part, SLICE), np.ldexp(low, SLICE)
    return slices, exponents


def _form(parts: list[np.ndarray], image: list[np.ndarray], exponents: np.ndarray) -> np.ndarray:
    """S = Xᵀ (A X), to about 2^-78 of each column's scale."""
    n = parts[0].shape[1]
    total = _Sum((n, n))
    for level in range(2, 6):
        for i in range(len(parts)):
            j = level - 2 - i
            if 0 <= j < len(image):
                total.add(np.ldexp(parts[i].T @ image[j], exponents - SLICE * level))
    return total.high + total.low
