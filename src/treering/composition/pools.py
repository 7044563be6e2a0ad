"""Distributions of several sources made one: as a mixture, or as a product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from treering.composition.posterior import precise

Pool = Literal["linear", "log"]

POOLED_AT_ONCE = 2**24
"""Logits (tokens × vocabulary × sources) that are mixed at once: each is copied for it."""


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities […] of ``tokens`` […] under ``logits`` […, vocab], precise enough to be summed over a book."""
    return logits.gather(-1, tokens[..., None])[..., 0] - normaliser(logits)


def normaliser(logits: Tensor) -> Tensor:
    """``ln Σ_v exp(logits_v)`` […] of ``logits`` […, vocab], summed as precisely as the device can."""
    largest = logits.amax(-1, keepdim=True).detach().clamp(min=torch.finfo(logits.dtype).min)
    return (logits - largest).exp_().sum(-1, dtype=precise(logits.device)).log() + largest[..., 0]


def linear_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture ``Σ_i w_i p_i`` [batch, position, vocab]; weights in logs.

    They have the level of the most credible expert's: where it is sure to be right they are its own, bit for bit. (The
    level of log-probabilities would round every token of a long text, and all that rounding adds up.)
    """
    level = logits.logsumexp(-1)
    level = weights.to(logits) - (level - level.gather(0, weights.argmax(0, keepdim=True)))
    at_once = max(1, POOLED_AT_ONCE // max(1, logits[:, :, :1].numel()))
    parts = zip(logits.split(at_once, 2), level[..., None].split(at_once, 2), strict=True)
    return torch.cat([(some + own).logsumexp(0) for some, own in parts], 1)


def log_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the normalised product ``Π_i p_i^{w_i}`` [batch, position, vocab]; weights in logs."""
    exponents = weights[..., None].exp().to(logits)
    return torch.where(exponents > 0, logits * exponents, 0.0).sum(0)  # of a token ruled out, 0 · −inf is 0 too


POOLS: dict[Pool, Callable[[Tensor, Tensor], Tensor]] = {"linear": linear_pool, "log": log_pool}
