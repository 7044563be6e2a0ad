"""A handful of ``benchmarks/chaos.py``: what a kill or damage leaves, the same command mends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize(("only", "kills", "damages"), [("train", 2, 2), ("grow, int8", 1, 1), ("compose", 3, 0)])
def test_nothing_is_lost_by_a_kill_or_damage(only, kills, damages):
    arguments = ["--only", only, "--kills", f"{kills}", "--damages", f"{damages}", "--seed", "11"]
    command = [sys.executable, CHAOS, *arguments]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout
