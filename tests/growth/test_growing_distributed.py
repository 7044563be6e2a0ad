from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from treering.cli.main import app

WAYS = ("stacked", "turns", "looped")
SCRIPT = """
import sys
from treering.cli.main import app

for recipe in sys.argv[1:]:
    app(["grow", recipe, "-o", recipe.replace(".yaml", "-two")], standalone_mode=False)
"""


@pytest.mark.slow
def test_two_processes_grow_as_one(substrate, tokenizer, corpus, tmp_path):
    """Two gloo processes with 128 tokens each, against one with two accumulated passes of 128: the same data.

    Each of the two makes its part of the prefix cache.
    """
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    for way in WAYS:
        recipe = {
            "substrate": str(tmp_path / "substrate"),
            "data": str(corpus.directory),
            "output": "",
            "backbone": {"preset": "tiny"},
            "plan": {"way": way, "depth": 2, "width": 1, "turn": 2, "low": 1, "head": way == "looped"},
            "training": {"tokens": 2048, "batch_tokens": 256, "micro_batch_tokens": 128, "evaluations": 1},
            "prefix": "float32",
        }
        (tmp_path / f"{way}.yaml").write_text(yaml.safe_dump(recipe))
        grown = CliRunner().invoke(app, ["grow", str(tmp_path / f"{way}.yaml"), "-o", str(tmp_path / f"{way}-one")])
        assert grown.exit_code == 0, grown.output
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, tmp_path / "script.py", *(tmp_path / f"{way}.yaml" for way in WAYS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for way in WAYS:
        weights = [load_file(tmp_path / f"{way}-{name}" / "model.safetensors") for name in ("one", "two")]
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)
    assert not list(tmp_path.glob("*.unfinished"))
