"""How much a text so far speaks for each of several sources: the weights of a mixture that learns while it reads."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LONG, STRETCH = 128, 32
"""Tokens from which on evidence with ``switch`` is taken in stretches, and the tokens of one."""


def posterior(likelihood: Tensor, prior: Tensor, state: Tensor | None = None, switch: float = 0.0) -> Tensor:
    """Log-weights of the experts after each token [expert, batch, position]: how much the text so far speaks for each.

    Without ``switch`` the exact posterior, ``w_i ∝ prior_i · p_i(text so far)``. The mixture with these weights loses
    at most ``ln 1/prior_i`` nats more than expert i on any text, however long: its probability of the text is
    ``Σ_i prior_i p_i(text) ≥ prior_i p_i(text)``.

    With ``switch`` = α, *fixed share to the start vector*: after each token ``w ← (1 − α)·w + α·prior``, the posterior
    of a source that at every token, with probability α, changes to an expert drawn from the prior. On any text of T
    tokens it loses, against the best division into k + 1 stretches each with an expert of its own, at most

        ln 1/prior(first) + Σ_switches ln 1/(α·prior(new)) + (T − 1 − k)·ln 1/(1 − α)   nats,

    the negative log of the weight that this source gives to the sequence of experts (Herbster & Warmuth 1998, *Tracking
    the best expert*; with the start vector, Bousquet & Warmuth 2002, *Tracking a small set of experts by mixing past
    posteriors*).

    An expert that gave a token probability 0 is out, without ``switch`` for good. A token that had probability 0 for
    all who were not out says nothing about who is right: the weights stay what they were before it.

    The sums are made in float64, whatever precision is given and returned: in float32 their rounding alone takes the
    loss of a text of 32,768 tokens 0.01 nats above the bound.

    Args:
        likelihood: [expert, batch, position], see `Reading`.
        prior: [expert], normalised, in logs.
        state: [expert, batch], to go on from.
    """
    said, start = _exact(likelihood), _exact(prior)[:, None]
    before = start.expand(said.shape[:2]) if state is None else _exact(state)
    if switch == 0:
        joint = before[..., None] + said.cumsum(-1)
        if not joint.isneginf().all(0).any():
            return joint.log_softmax(0).to(likelihood)
    if switch == 0 or said.shape[-1] < LONG or not before.isneginf().eq(start.isneginf()).all():
        return _after_each(said, before, start, switch).to(likelihood)
    stretches = F.pad(said, (0, -said.shape[-1] % STRETCH)).unflatten(-1, (-1, STRETCH))
    firsts = _before_each(stretches, before, start, switch)
    track = _after_each(stretches, firsts, start[..., None], switch)
    return track.flatten(-2)[..., : said.shape[-1]].to(likelihood)


def _after_each(said: Tensor, before: Tensor, start: Tensor, switch: float) -> Tensor:
    """The weights of `posterior` after each token, one token after the other.

    Args:
        said: log-probabilities of the tokens [expert, …, position].
        before: log-weights before the first [expert, …].
        start: those that a switch draws from, with as many dimensions as ``before``.
    """
    weights = []
    for token in said.unbind(-1):
        joint = before + token
        before = torch.where(joint.isneginf().all(0), before, joint).log_softmax(0)
        if switch:
            before = torch.logaddexp(before + math.log1p(-switch), start + math.log(switch))
        weights.append(before)
    return torch.stack(weights, -1)


def _before_each(stretches: Tensor, before: Tensor, start: Tensor, switch: float) -> Tensor:
    """The weights of `posterior` before each stretch [expert, batch, stretch], of which all are read at once.

    Not normalised, the weights after a token are linear in those before it. So what a stretch makes of any weights is
    the sum of what it makes of each expert alone.

    Args:
        stretches: log-probabilities of a text's tokens [expert, batch, stretch, position].
        before: log-weights before the first [expert, batch]; those are out that ``start`` [expert, 1] leaves out.
    """
    impossible = stretches.masked_fill(start.isneginf()[..., None, None], -math.inf).isneginf().all(0)
    experts, shape = len(start), stretches.shape[1:-1]
    made = torch.eye(experts).to(stretches).log()[..., None, None].expand(-1, -1, *shape)  # [expert, from expert, …]
    drawn = (start + math.log(switch))[..., None, None]
    for token in stretches.masked_fill(impossible, 0.0).unbind(-1):
        joint = made + token[:, None]
        made = torch.logaddexp(joint + math.log1p(-switch), joint.logsumexp(0) + drawn)
    firsts = [before]
    for stretch in made.unbind(-1)[:-1]:
        firsts.append((stretch + firsts[-1]).logsumexp(1).log_softmax(0))
    return torch.stack(firsts, -1)


@lru_cache
def log_prior(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Normalised logs of relative weights; kept, since every decoding step asks for them."""
    with torch.inference_mode(False):
        given = torch.tensor(weights, device=device, dtype=precise(device))
        return (given / given.sum()).log()


def precise(device: torch.device) -> torch.dtype:
    """What evidence is kept in on a device: float64; float32 on Apple's MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def _exact(values: Tensor) -> Tensor:
    """In float64, and where the device has none on the CPU."""
    device = values.device if precise(values.device) is torch.float64 else "cpu"
    return values.to(device, torch.float64)


def most_credible(weights: Tensor, k: int) -> Tensor:
    """Which experts [expert, …] are among the k of largest weight; of equals at the border, all."""
    return weights >= weights.topk(min(k, len(weights)), dim=0).values[-1:]
