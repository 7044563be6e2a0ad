from __future__ import annotations

import hashlib

import numpy as np
import pytest

from treering.errors import TreeringError
from treering.substrate.codes import code_bits, code_rows, lift, random_rows, token_codes, unit_rows


def test_bits():
    assert [code_bits(v) for v in (1, 2, 4096, 65_536, 65_537, 131_072, 131_073)] == [
        16,
        16,
        16,
        16,
        17,
        17,
        18,
    ]


def test_the_paper_s_count_of_frozen_numbers():
    assert token_codes(65_536).size == 1_048_576


def test_codes_spell_the_id():
    codes = token_codes(70_000)
    assert codes.shape == (70_000, 17) and set(np.unique(codes)) == {-1, 1}
    assert (((codes > 0) * 2 ** np.arange(17)).sum(axis=1) == np.arange(70_000)).all()


def test_the_whole_code_repeats():
    rows = code_rows(300, 40)
    codes = token_codes(300)
    assert (np.sign(rows[:, :16]) == codes).all() and (np.sign(rows[:, 16:32]) == codes).all()
    assert (np.sign(rows[:, 32:]) == codes[:, :8]).all()
    assert rows.dtype == np.float32 and np.allclose((rows**2).sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(rows, axis=0)) == 300
    with pytest.raises(TreeringError, match="too small for a 16-bit"):
        lift(codes, 15)


def test_random_rows_are_unit_normal_like_and_pinned():
    rows = random_rows(500, 256, seed=7)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    values = rows.ravel() * 16
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 2.7) < 0.1  # a sum of four uniform numbers has kurtosis 3 - 1.2/4
    assert (random_rows(500, 256, seed=7) == rows).all()
    assert not (random_rows(500, 256, seed=8) == rows).all()
    assert (random_rows(20_000, 256, seed=7)[:500] == rows).all()  # rows do not depend on the chunks or the vocabulary
    assert hashlib.sha256(rows).hexdigest() == "e00cb4518569fff2e083212487fa57f5ddc0f27042feb307d2e33042e7a65629"


def test_unit_rows():
    rows = unit_rows(np.array([[3.0, -4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[np.float32(0.6), np.float32(-0.8)], [0, 0]]
    with pytest.raises(ValueError):
        unit_rows(np.array([[2.0**27, 0.0]]))
