"""How long a model takes to write."""

from __future__ import annotations

import statistics
import time

import torch
from transformers import DynamicCache, PreTrainedModel


@torch.inference_mode()
def milliseconds(model: PreTrainedModel, steps: int = 16) -> float:
    """Median of so many cached decoding steps, after 32 tokens and a few steps that do not count."""
    cache, times = DynamicCache(), []
    tokens = torch.zeros(1, 32, dtype=torch.long, device=model.device)
    for _ in range(steps + 4):
        begun = time.perf_counter()
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        times.append(1000 * (time.perf_counter() - begun))
        tokens = tokens[:, -1:]
    return statistics.median(times[4:])
