"""What a command imports before it works: nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAINING = {"datasets", "peft", "transformers.trainer", "matplotlib"}
# pandas may come with transformers: some versions of scikit-learn, which it imports where that is installed, do so.


@pytest.mark.parametrize(
    ("code", "spared"),
    [
        ("import treering.cli.main", {"torch", "transformers", "numpy", "pandas", "pydantic", *TRAINING}),
        ("import treering.training.status", {"torch", "transformers", "pandas", *TRAINING}),
        ("import treering.corpus", {"torch", "transformers", "pandas", *TRAINING}),
        ("import treering.tokenizer", TRAINING),
        ("import treering.composition", TRAINING),
        ("import treering.evaluation", TRAINING),
        ("import treering.report, treering.report.explanation", {"torch", "pandas", *TRAINING}),
    ],
)
def test_imports_spare(code, spared):
    asked = f"{code}, sys; print(*sorted({spared} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
