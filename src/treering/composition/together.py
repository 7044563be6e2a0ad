"""What experts that know the same say together: a product of their distributions, in which each has an exponent.

Evidence finds the one expert that a text is of, and where several know it equally well it soon follows one of them
alone. But those err apart, and a product of distributions forgives what only one of them got wrong. So here the
evidence is taken slowly, by the posterior of ``p_i^RATE``: an expert of another language is out after some tokens, one
that stays within some ten nats keeps nearly the weight of the best,

    w_i ∝ prior_i · p_i(text so far)^RATE,    p(v) ∝ Π_i p_i(v)^{e_i},    e_i = w_i · n^SHARPEN,    n = 1/Σ_i w_i².

``n`` is how many experts count (of two alike, 2). Averaged logits of several are too timid; exponents that add up to
more than one, and the more the more experts count, sharpen them (a temperature after pooling: Rahaman & Thiery 2021).
Which experts are of one kind nobody has to say; each text tells it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from treering.composition.pools import log_pool, normaliser

RATE = 0.05
"""At which evidence is taken; half or twice of it changes little (docs/rules.md)."""
SHARPEN = 0.15
LEVELLED_AT_ONCE = 2**21
"""Logits (tokens × vocabulary × experts) of earlier positions that exist at once."""

Said = Callable[[slice], Tensor]


def exponents(weights: Tensor) -> Tensor:
    """Logs of the exponents ``e_i`` [expert, …] from log-weights ``w_i`` [expert, …], normalised."""
    several = -(2 * weights).logsumexp(0)
    return weights + SHARPEN * several


def levels(said: Said, powers: Tensor, vocabulary: int) -> Tensor:
    """``ln Σ_v Π_i p_i(v)^{e_i}`` [batch, position]: at most 0, the less the less the experts agree.

    Args:
        said: the logits [expert, batch, position, vocab] that all experts gave at some positions.
        powers: logs of exponents there [expert, batch, position].
    """
    at_once = max(1, LEVELLED_AT_ONCE // max(1, powers[..., 0].numel() * vocabulary))
    found = []
    for begin in range(0, powers.shape[-1], at_once):
        part = slice(begin, begin + at_once)
        logits, own = said(part), powers[..., part]
        found.append(normaliser(log_pool(logits, own)) - weighed(own, normaliser(logits)))
    return torch.cat(found, -1)


def weighed(powers: Tensor, likelihood: Tensor) -> Tensor:
    """``Σ_i e_i · ln p_i`` […] of log-probabilities [expert, …]; who has no exponent has no say."""
    own = powers.exp().to(likelihood)
    return torch.where(own > 0, own * likelihood, 0.0).sum(0)
