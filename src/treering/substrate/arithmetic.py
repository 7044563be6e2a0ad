"""Matrix products for whole numbers: exact, and on one thread.

A floating-point product of whole numbers is exact, whatever the library and the order of summation, as long
as no partial sum outgrows the format: 2^24 in float32, 2^53 in float64. Callers see to that.

One thread, because threads of one product wait for each other: beside other work on two cores the same build
took 7 to 9 s on two threads and 3 s on one, and LAPACK's many small steps up to thirty times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread and in full precision within; also a decorator."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # others round the factors to fewer bits
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The matrix product ``left @ right``, batched as in NumPy."""
    return torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy()


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LAPACK's eigenvalues, ascending, and eigenvectors ``[n, n]`` of a symmetric float64 matrix."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()
