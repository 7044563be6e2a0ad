from __future__ import annotations

import numpy as np
import pytest

from treering.errors import TreeringError
from treering.substrate.codes import token_codes
from treering.substrate.glyphs import draw
from treering.substrate.projection import covariance, hadamard_basis, pca_basis, pixel_basis, project


@pytest.fixture(scope="module")
def cells():
    texts = [chr(code) for code in (*range(0x21, 0x7F), *range(0x410, 0x450), *range(0x4E00, 0x4F40))]
    return draw(texts, 16)


def unmarked(cells):
    return np.zeros(len(cells), dtype=bool)


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_covariance_is_exact(cells):
    wide = cells.astype(np.int64)
    ink = wide.sum(axis=0)
    assert (covariance(cells) == len(cells) * wide.T @ wide - np.outer(ink, ink)).all()


@pytest.mark.parametrize("d_model", [5, 64, 256, 300])
def test_pca_is_the_singular_value_decomposition(cells, d_model):
    basis, found = pca_basis(cells, d_model)
    rows, empty = project(cells, basis, unmarked(cells))
    assert basis.shape == (256, d_model) and rows.shape == (len(cells), d_model) and empty == 0 and found.certain
    centred = cells - cells.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(found.values[: found.rank], len(cells) * singular[: found.rank] ** 2, rtol=1e-9)
    kept = min(d_model, found.rank)
    expected = normalised(centred @ directions[:kept].T)
    signs = np.sign((expected * rows[:, :kept]).sum(axis=0))
    assert np.abs(expected * signs - rows[:, :kept]).max() < 2e-4  # the grid of 2^-18 and nothing else
    assert (rows[:, kept:] == 0).all()


def test_all_components_keep_all_angles(cells):
    expected = normalised(cells - cells.mean(axis=0))
    for basis in (
        pca_basis(cells, 256)[0],
        hadamard_basis(256, 256),
        pixel_basis(256, 256),
        pixel_basis(256, 300),
    ):
        rows, _ = project(cells, basis, unmarked(cells))
        assert np.abs(rows @ rows.T - expected @ expected.T).max() < 2e-4


def test_hadamard_is_sylvester_s_matrix():
    basis = hadamard_basis(48, 20)  # 64 features of 48 pixels, 20 of them chosen
    sylvester = np.array([[1]])
    while len(sylvester) < 64:
        sylvester = np.kron([[1, 1], [1, -1]], sylvester)
    flips = np.sign(basis[:, :1]) * np.sign(basis)
    wanted = {tuple(row[:48] * row[0]) for row in sylvester}
    products = {tuple(column * column[0]) for column in flips.T}  # ratios of two rows are rows
    assert products <= wanted and len(products) == 20
    assert set(np.unique(basis)) == {-4096, 4096}
    whole = hadamard_basis(64, 64)
    assert (whole.T @ whole == 64 * 4096**2 * np.eye(64)).all()


def test_hadamard_nearly_keeps_distances_when_it_is_narrower(cells):
    rows, _ = project(cells, hadamard_basis(256, 128), unmarked(cells))
    expected = normalised(cells - cells.mean(axis=0))
    assert np.abs(rows @ rows.T - expected @ expected.T).std() < 0.12


def test_pixels_are_centred_pixels(cells):
    rows, _ = project(cells, pixel_basis(256, 260), unmarked(cells))
    assert np.abs(rows[:, :256] - normalised(cells - cells.mean(axis=0))).max() < 1e-3
    assert (rows[:, 256:] == 0).all()
    with pytest.raises(TreeringError, match="does not fit"):
        pixel_basis(256, 255)


@pytest.mark.parametrize("basis", ["pca", "hadamard"])
def test_marks_part_look_alikes(cells, basis):
    twins = np.concatenate([cells, cells])
    weights = pca_basis(twins, 40)[0] if basis == "pca" else hadamard_basis(256, 40)
    marked = np.arange(len(twins)) >= len(cells)
    rows, _ = project(twins, weights, marked)
    pure, _ = project(twins, weights, unmarked(twins))
    assert (rows[: len(cells)] == pure[: len(cells)]).all()
    distance = np.linalg.norm(rows[: len(cells)] - rows[len(cells) :], axis=1)
    assert distance.min() > 0.1 and distance.max() < 0.15
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_rows_without_length_become_their_code():
    cells = np.ones((9, 64), dtype=np.uint8)
    rows, empty = project(cells, pca_basis(cells, 32)[0], unmarked(cells))
    assert empty == 9 and (np.sign(rows[:, :16]) == token_codes(9)).all() and len(np.unique(rows, axis=0)) == 9
    rows, empty = project(cells, pixel_basis(64, 64), np.arange(9) > 0)
    assert empty == 9 and np.isfinite(rows).all() and len(np.unique(rows, axis=0)) == 9


def test_chunks_and_order_of_sums_do_not_matter(cells, monkeypatch):
    from treering.substrate import projection

    many = np.concatenate([cells] * 3)
    weights, _ = pca_basis(many, 100)
    rows, _ = project(many, weights, unmarked(many))
    monkeypatch.setattr(projection, "CHUNK", 1000)
    assert (project(many, weights, unmarked(many))[0] == rows).all()
    assert (covariance(many) == covariance(many[::-1])).all()
    shuffled = np.random.default_rng(0).permutation(256)
    assert (project(many[:, shuffled], weights[shuffled], unmarked(many))[0] == rows).all()
