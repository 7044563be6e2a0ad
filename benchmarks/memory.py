"""Peak memory, as the benchmarks measure it."""

from __future__ import annotations

from pathlib import Path

import torch

from treering.composition import load_model


def peak() -> float:
    """MiB that this process held at most, the high-water mark of its resident set as Linux tells it.

    (What getrusage tells a child holds its parent's, too.)
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


def peak_of_decoding(directories: list[Path], tokens: int) -> tuple[float, float]:
    """`peak` of this process, and MiB of the parameters, after the models of these directories wrote some tokens."""
    models = [load_model(directory) for directory in directories]
    for model in models:
        model.generate(torch.zeros(1, 64, dtype=torch.long), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return peak(), sum(p.nbytes for model in models for p in model.parameters()) / 2**20
