from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stacked", "turns", "looped"])
def test_two_processes_grow_as_one(substrate, tokenizer, corpus, tmp_path, way):
    """Two gloo processes with 128 tokens each, against one with two accumulated passes of 128: the same data.

    Each of the two makes its part of the prefix cache.
    """
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    recipe = {
        "substrate": str(tmp_path / "substrate"),
        "data": str(corpus.directory),
        "output": "",
        "backbone": {"preset": "tiny"},
        "plan": {"way": way, "depth": 2, "width": 1, "turn": 2, "low": 1, "head": way == "looped"},
        "training": {"tokens": 2048, "batch_tokens": 256, "micro_batch_tokens": 128, "evaluations": 1},
        "prefix": "float32",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "treering"]
    for name, launch in (("one", ["-m", "treering"]), ("two", two)):
        command = [sys.executable, *launch, "grow", tmp_path / "recipe.yaml", "-o", tmp_path / name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)
    assert not list(tmp_path.glob("*.unfinished"))
