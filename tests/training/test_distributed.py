from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

SCRIPT = """
import sys, torch
from treering.backbone import PRESETS, dock, gpt_neox
from treering.corpus import Corpus
from treering.substrate import load
from treering.tokenizer import load as load_tokenizer
from treering.training import Training, train

folder, output, micro = sys.argv[1:]
tokenizer, substrate = load_tokenizer(folder + "/substrate"), load(folder + "/substrate")
torch.manual_seed(0)
config = gpt_neox(PRESETS["tiny"])
config.vocab_size = len(tokenizer)
settings = Training(tokens=2048, batch_tokens=256, micro_batch_tokens=int(micro), evaluations=1)
train(dock(config, substrate, tokenizer), tokenizer, Corpus.load(folder + "/corpus"), output, settings)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(substrate, tokenizer, corpus, tmp_path):
    """Two gloo processes with 128 tokens each, against one with two accumulated passes of 128: the same data."""
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    source = corpus.directory
    (tmp_path / "corpus").symlink_to(source)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [tmp_path / "script.py", tmp_path, tmp_path / "two", "128"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr
    arguments[2] = tmp_path / "one"
    one = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert one.returncode == 0, one.stderr
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    initial_distance = max((weights[0][k] - substrate.matrix).abs().max() for k in weights[0] if "embed_in" in k)
    assert initial_distance == 0
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)
    assert not list(tmp_path.glob("*.unfinished"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "two")
