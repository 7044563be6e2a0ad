"""The same fingerprint whatever the threads, the processor's kernels and the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from treering.substrate import build

SCRIPT = """
import sys
from treering import tokenizer
from treering.substrate import build
made = build(tokenizer.load(sys.argv[1]), 400, cell=20)
print(made.fingerprint, made.report["reproducible"], made.report["rank"])
"""


@pytest.fixture(scope="module")
def directory(literal, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    literal.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def here(literal):
    made = build(literal, 400, cell=20)
    assert made.report["reproducible"] and made.report["rank"] > 200
    return made


@pytest.mark.parametrize(
    ("threads", "openblas", "mkl", "seed"),
    [
        (1, "Haswell", "AVX2", 1),
        (2, "SkylakeX", "AVX512", 2),
        (2, "Sandybridge", "SSE4_2", 3),
        (1, "Prescott", "COMPATIBLE", 4),
    ],
)
def test_same_fingerprint(directory, here, threads, openblas, mkl, seed):
    if mkl == "AVX512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("OpenBLAS would be told to use instructions that this processor does not have")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    environment |= {"OPENBLAS_CORETYPE": openblas, "MKL_CBWR": mkl, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", SCRIPT, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [here.fingerprint, "True", str(here.report["rank"])]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_same_fingerprint_where_torch_may_round_factors(literal, here, precision):
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision(precision)
    try:
        assert build(literal, 400, cell=20).fingerprint == here.fingerprint
        assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == (precision, before[1])
    finally:
        torch.set_float32_matmul_precision(before[0])
