"""What a model costs who writes with it: time and memory."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Costs:
    """What one model or composition costs in decoding.

    Attributes:
        parameters: in all, each once.
        milliseconds: of a decoding step (see `milliseconds`).
        mebibytes: of its weights, each once, and of what is kept of a text that fills its context (see `mebibytes`).
    """

    parameters: int
    milliseconds: float
    mebibytes: float


def costs(model: PreTrainedModel, context: int) -> Costs:
    """What decoding with a model costs, as it is used now; ``context`` in tokens."""
    return Costs(model.num_parameters(), milliseconds(model), mebibytes(model, context))


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


@torch.inference_mode()
def mebibytes(model: PreTrainedModel, context: int) -> float:
    """MiB that one who decodes has to hold: weights and buffers, and the cache of one text of ``context`` tokens.

    It is the same on every machine. What a step needs for a moment beside it (activations, logits) is not in it.
    """
    cache = DynamicCache()
    tokens = torch.zeros(1, context, dtype=torch.long, device=model.device)
    model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *_kept(cache))}
    return sum(held.values()) / 2**20


def _kept(cache: Cache) -> Iterator[Tensor]:
    """The tensors of a cache: keys and values, and whatever else its layers keep, alone or in a list."""
    for value in itertools.chain.from_iterable(vars(layer).values() for layer in cache.layers):
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Tensor))
