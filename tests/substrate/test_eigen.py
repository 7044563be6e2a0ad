from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.substrate import eigen
from treering.substrate.eigen import FRACTION, GRID, eigenbasis


def integer_gram(n, rows, seed, weight=1):
    x = np.random.default_rng(seed).integers(-weight, weight + 1, (rows, n))
    return x.T @ x


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def reference(matrix):
    """Eigenvectors by mpmath, largest eigenvalue first, largest entry positive."""
    values, vectors = mpmath.eigsy(mpmath.matrix(matrix.tolist()))
    columns = []
    for i in sorted(range(len(matrix)), key=lambda i: -values[i]):
        column = [vectors[k, i] for k in range(len(matrix))]
        lead = max(column, key=abs)
        columns.append([entry * mpmath.sign(lead) for entry in column])
    return columns


def on_grid(column):
    return [int(mpmath.floor(entry * 2**GRID + mpmath.mpf(1) / 2)) for entry in column]


@pytest.mark.parametrize("seed", range(4))
def test_rounds_what_sixty_digits_give(seed):
    matrix = integer_gram(14, 40, seed, weight=1000)
    basis = eigenbasis(matrix, 14)
    expected = [on_grid(column) for column in reference(matrix)]
    assert basis.certain and basis.rank == 14
    assert basis.vectors.T.tolist() == expected


def test_near_eigenvalues_are_resolved_beyond_float64():
    # Two eigenvalues 2·10^-9 of the largest apart: LAPACK's vectors have some 7 digits; more are needed.
    matrix = np.diag([2**40, 2**40 - 2000, 2**39, 5]).astype(np.int64)
    matrix[0, 1] = matrix[1, 0] = 321
    matrix[0, 2] = matrix[2, 0] = 77_777
    matrix[1, 3] = matrix[3, 1] = 1
    basis = eigenbasis(matrix, 4)
    assert basis.vectors.T.tolist() == [on_grid(column) for column in reference(matrix)[: basis.rank]]
    assert basis.certain


def test_the_bound_holds():
    matrix = integer_gram(16, 60, seed=5, weight=300)
    columns = reference(matrix)
    start = np.linalg.eigh(matrix.astype(float))[1]
    noisy = start[:, ::-1] + 1e-6 * np.random.default_rng(0).standard_normal(start.shape)
    vectors = np.rint(np.ldexp(noisy, FRACTION)).astype(np.int64)
    slices = eigen._slices(matrix)
    bounds = []
    for _ in range(3):
        vectors, _, bound = eigen._refine(slices, vectors)
        for j, column in enumerate(columns):
            ours = [mpmath.mpf(int(v)) / 2**FRACTION for v in vectors[:, j]]
            sign = mpmath.sign(sum(a * b for a, b in zip(ours, column, strict=True)))
            worst = max(abs(sign * a - b) for a, b in zip(ours, column, strict=True))
            assert worst <= bound[j]
        bounds.append(bound.max())
    assert bounds[0] < 1e-7 and bounds[2] < 1e-16


@pytest.mark.parametrize("library", ["torch", "numpy", "noise"])
def test_the_guess_does_not_matter(library):
    matrix = integer_gram(200, 3000, seed=1)

    def guess(a):
        if library == "torch":  # another LAPACK altogether
            values, vectors = torch.linalg.eigh(torch.from_numpy(a))
            return values.numpy(), vectors.numpy()
        values, vectors = np.linalg.eigh(a)
        if library == "noise":
            random = np.random.default_rng(3)
            vectors = vectors * random.choice([-1, 1], 200) + 1e-7 * random.standard_normal(vectors.shape)
        return values, vectors

    basis, usual = eigenbasis(matrix, 150, guess), eigenbasis(matrix, 150)
    assert basis.certain and usual.certain
    assert (basis.vectors == usual.vectors).all() and (basis.vectors.shape == (200, 150))


def test_slices_give_back_the_integers_and_products_are_exact():
    random = np.random.default_rng(0)
    whole = random.integers(-(2**60), 2**60, (300, 80))
    whole[0, :4] = 2**60, -(2**60), 0, -1
    whole //= 16  # columns of an eigenvector matrix are of length one: its top slices are short
    parts = eigen._slices(whole, FRACTION)
    back = sum(part.astype(object).astype(int).astype(object) * 2 ** (20 * (2 - i)) for i, part in enumerate(parts))
    assert (back == whole).all()
    for a in parts:
        for b in parts:
            exact = a.astype(np.int64).T @ b.astype(np.int64)
            assert (a.T @ b == exact).all()
            assert ((torch.from_numpy(a).T @ torch.from_numpy(b)).numpy() == exact).all()


def test_equal_eigenvalues_are_owned_up_to():
    basis = eigenbasis(np.diag([9, 5, 5, 1]).astype(np.int64), 4)
    assert basis.unresolved == 2 and not basis.certain
    assert eigenbasis(np.diag([9, 5, 5, 1]).astype(np.int64), 1).certain  # the others are not kept
    assert eigenbasis(np.diag([9, 5, 5, 1]).astype(np.int64), 2).unresolved == 1  # the cut goes through the pair


def test_rank_deficiency_and_nothing_at_all():
    x = np.random.default_rng(2).integers(0, 2, (6, 30))
    basis = eigenbasis(x.T @ x, 30)
    assert basis.rank == np.linalg.matrix_rank(x) and basis.vectors.shape == (30, basis.rank)
    assert basis.certain and (basis.values[basis.rank :] == 0).all()
    nothing = eigenbasis(np.zeros((5, 5), np.int64), 3)
    assert nothing.rank == 0 and nothing.vectors.shape == (5, 0) and nothing.certain


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(2, 60), st.integers(0, 10_000))
def test_vectors_are_eigenvectors(n, rows, seed):
    matrix = integer_gram(n, rows, seed)
    basis = eigenbasis(matrix, n)
    vectors = basis.vectors / 2**GRID
    assert np.allclose(vectors.T @ vectors, np.eye(basis.rank), atol=n * 2**-GRID)
    assert np.allclose(matrix @ vectors, vectors * basis.values[: basis.rank], atol=basis.values[0] * n * 2**-GRID)
    lead = np.take_along_axis(basis.vectors, np.abs(basis.vectors).argmax(axis=0)[None], axis=0)
    assert (lead > 0).all()
