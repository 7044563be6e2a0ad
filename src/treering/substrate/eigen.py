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

from treering.substrate.arithmetic import eigh, one_thread, product

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


@one_thread()
def eigenbasis(matrix: np.ndarray, keep: int, guess: Guess = eigh) -> Basis:
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

    Their correction X ← X + X E has E_ij = (S_ij + λ_j R_ij) / (λ_j − λ_i), S = XᵀAX and R = I − XᵀX. Off the
    diagonal the numerator is x_iᵀ(A x_j − λ_j x_j): once the residual A x_j − λ_j x_j, in which nearly all
    digits cancel, is known, plain float64 does the rest.
    """
    parts = _slices(vectors, FRACTION)
    rounded = np.ldexp(vectors.astype(np.float64), -FRACTION)
    image = _image(matrix, parts)
    excess = _squares(parts)  # x_jᵀ x_j − 1
    values = np.einsum("pj,pj->j", rounded, image.high) / (1 + excess)
    residual = _residual(image, values, parts)
    coupling = product(rounded.T, residual)
    gaps = values[None, :] - values[:, None]  # λ_j − λ_i
    near = np.abs(gaps) <= CLOSE * values.max()
    safe = np.where(near, 1.0, gaps)
    correction = np.where(near, 0.0, coupling / safe)
    lonely = near.sum(axis=0) == 1
    if not lonely.all():  # near neighbours, null vectors among them, are only kept orthogonal
        lacking = -product(rounded.T, rounded)
        np.fill_diagonal(lacking, 0.0)
        correction = np.where(near, lacking / 2, correction)
    np.fill_diagonal(correction, -excess / 2)

    # What a first-order correction neglects, with Cauchy and Schwarz: products of two corrections, themselves
    # or through A, and what couples through near neighbours.
    positive = np.maximum(values, 0)
    size = np.maximum(np.abs(correction), np.abs(correction.T))
    plain = np.sqrt(np.einsum("ij,ij->j", size, size))
    weighted = np.sqrt(np.einsum("i,ij,ij->j", positive, size, size))
    larger = np.maximum(positive[:, None], positive)
    coupled = np.where(near, np.abs(coupling), 0.0)
    np.fill_diagonal(coupled, 0.0)
    neglected = (
        np.outer(weighted, weighted)
        + 2 * larger * np.outer(plain, plain)
        + 2 * np.outer(np.sqrt(np.einsum("ij,ij->i", coupled, coupled)), plain)
    )
    arithmetic = 2.0**-70 * larger
    second = np.where(near, 3 * np.outer(plain, plain), (3 * neglected + arithmetic) / np.abs(safe))
    bound = 4 * np.sqrt(np.einsum("ij,ij->j", second, second)) + 2.0**-57
    bound[~lonely & (values > NEGLIGIBLE * values.max())] = np.inf

    better = vectors + np.rint(np.ldexp(product(rounded, correction), FRACTION)).astype(np.int64)
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


def _image(matrix: list[np.ndarray], parts: list[np.ndarray]) -> _Sum:
    """A X: each product of slices is exact, and so is the sum of the two of one level."""
    total = _Sum(parts[0].shape)
    for level in range(len(matrix) + len(parts) - 1):
        pairs = [(i, level - i) for i in range(len(matrix)) if 0 <= level - i < len(parts)]
        whole = sum(product(matrix[i], parts[j]) for i, j in pairs[:2])
        for term in [whole, *(product(matrix[i], parts[j]) for i, j in pairs[2:])]:
            total.add(np.ldexp(term, SLICE * (len(matrix) - 2 - level)))
    return total


def _squares(parts: list[np.ndarray]) -> np.ndarray:
    """x_jᵀ x_j − 1 of each vector, down to 2^-100."""
    total = _Sum(parts[0].shape[1:])
    total.add(np.full(parts[0].shape[1], -1.0))
    for i, first in enumerate(parts):
        for j, second in enumerate(parts):
            total.add(np.ldexp(np.einsum("pj,pj->j", first, second), -SLICE * (i + j + 2)))
    return total.high + total.low


def _residual(image: _Sum, values: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """A x_j − λ_j x_j; of each λ_j two halves, so that their products with slices are exact."""
    halves = values.astype(np.float32).astype(np.float64)
    for j, part in enumerate(parts):
        scaled = np.ldexp(part, -SLICE * (j + 1))
        for half in (halves, values - halves):
            image.add(-half * scaled)
    return image.high + image.low
