from __future__ import annotations

import numpy as np
import pytest
import torch

from treering.substrate.arithmetic import eigh, one_thread, product


def test_products_of_whole_numbers_are_exact():
    random = np.random.default_rng(0)
    for kind, bits in ((np.float32, 7), (np.float64, 21)):
        left, right = (random.integers(-(2**bits), 2**bits, shape) for shape in ((50, 1000), (1000, 40)))
        with one_thread():
            found = product(left.astype(kind), right.astype(kind))
        assert found.dtype == kind and (found == left @ right).all()
        assert (left.astype(kind) @ right.astype(kind) == found).all()  # NumPy's library agrees
    batch = random.integers(0, 9, (7, 5, 3)).astype(np.float32)
    assert (product(np.ones((4, 5), np.float32), batch) == np.ones((4, 5)) @ batch).all()


def test_eigh():
    values, vectors = eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    assert np.allclose(values, [1, 3]) and np.allclose(np.abs(vectors), 0.5**0.5)


def test_settings_come_back_even_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError), one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == threads
