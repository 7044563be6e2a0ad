"""What a composition costs without Treering: loading, reading a prompt, writing, each way in a process of its own.

    python benchmarks/elsewhere.py --branches 3

A base of 14 blocks of width 512, and branches that replace its last two, drawn at random, with 32,768 tokens. Seconds
are a processor's.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, WRITTEN = 256, 32


def make(place: Path, branches: int) -> None:
    """Write the composition."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from treering.backbone import blocks
    from treering.composition import compose

    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 32_768}
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=14, tie_word_embeddings=True, **shape))
    experts = {"base": base}
    for n in range(branches):
        torch.manual_seed(n)
        experts[f"branch{n}"] = branch = copy.deepcopy(base)
        for parameter in blocks(branch)[12:].parameters():
            parameter.data.normal_(0, 0.02)
    compose(experts, "evidence:switch=0.01", across_substrates=True).save_pretrained(place)


def measure(place: str, way: str) -> None:
    """Print what one way costs, as JSON."""
    if way == "elsewhere":
        sys.modules["treering"] = None  # type: ignore[assignment]
    else:
        import treering.composition  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM

    before, start = peak(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    loaded, took = peak() - before, time.process_time() - start
    ids = torch.arange(100, 100 + PROMPT)[None]
    seconds = {}
    for new in (1, 1 + WRITTEN):
        start = time.process_time()
        model.generate(ids, min_new_tokens=new, max_new_tokens=new, do_sample=False)
        seconds[new] = time.process_time() - start
    row = {
        "way": way,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loading MiB": round(loaded),
        "loading s": round(took, 2),
        "prompt s": round(seconds[1], 2),
        "tokens/s": round(WRITTEN / (seconds[1 + WRITTEN] - seconds[1]), 1),
        "peak MiB": round(peak() - before),
    }
    print(json.dumps(row))


def peak() -> float:
    """The most memory that this process ever had, in MiB (see ``memory.peak``, which imports Treering)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder, "joined"), chosen.branches)
            environment = os.environ | {"HF_MODULES_CACHE": folder}
            for way in ("treering", "elsewhere"):
                command = [sys.executable, __file__, "--measure", str(Path(folder, "joined")), way]
                subprocess.run(command, env=environment, check=True)
