"""Rules that join experts at their output, registered by name: the paper's (section 4) and better ones.

A rule is a pure function ``rule(logits, reading, **parameters) -> Joined``: from what the experts say of the next
token, and from how they did on the tokens before it. Most weigh the experts and pool their distributions, linearly (a
mixture of probabilities) or log-linearly (a weighted mean of logits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from treering.composition.repeats import repeated, repeats

Pool = Literal["linear", "log"]
Need = Literal["logits", "evidence", "hidden"]
Share = Annotated[float, {"ge": 0, "lt": 1}]
Count = Annotated[int, {"ge": 1}]
"""A number with its limits; who reads a rule's name checks them (``treering.composition.specs``)."""

LONG, STRETCH = 128, 32
"""Tokens from which on evidence with ``switch`` is taken in stretches, and the tokens of one."""


@dataclass(frozen=True)
class Reading:
    """What experts made of a stretch of text, beside their logits.

    Attributes:
        prior: log-weights of the experts before any text [expert], normalised.
        likelihood: log-probability that each expert gave to the token at each position, given all before it [expert,
            batch, position]; 0 where nothing was to be predicted (a text's first token, padding). Of what follows, a
            rule may ask for as much as it ``needs`` (see `register`).
        state: log-weights after everything that was read before this stretch [expert, batch], as `Joined.evidence` has
            them; None at a beginning.
        hidden: final hidden states of all experts, one after the other [batch, position, sum of widths].
        fusion: what was fitted on top of the experts, by name.
        kept: the positions that ``logits`` and ``hidden`` are given for.
        tokens: of the text from its beginning to the end of this stretch [batch, position of the text]; -1 for padding.
    """

    prior: Tensor
    likelihood: Tensor | None = None
    state: Tensor | None = None
    hidden: Tensor | None = None
    fusion: Mapping[str, Tensor] = field(default_factory=dict)
    kept: slice | Tensor = field(default_factory=lambda: slice(None))
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Joined:
    """What a rule returns.

    Attributes:
        logits: of the composition, [batch, position, vocab]; their softmax is its distribution.
        weights: log-weight of each expert at those positions [expert, batch, position], and after the experts' that of
            the ``cache`` where there is one.
        evidence: log-weights after each position of the reading [expert, batch, position], whose last is the next
            reading's ``state``; None for rules that need no evidence. With a ``cache`` two more rows: of all experts
            together, and of it.
    """

    logits: Tensor
    weights: Tensor
    evidence: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """A registered rule with its parameters chosen; ``str(rule)`` says which, as ``evidence:switch=0.01``."""

    name: str
    function: Callable[..., Joined]
    source: str
    needs: frozenset[Need]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, logits: Tensor, reading: Reading) -> Joined:
        """Join ``logits`` [expert, batch, position, vocab]."""
        return self.function(logits, reading, **self.parameters)

    def __str__(self) -> str:
        chosen = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}:{chosen}" if chosen else self.name


RULES: dict[str, Rule] = {}


def register(source: str, needs: Sequence[Need] = ("logits",)) -> Callable[..., Any]:
    """Make a rule known under its function's name; its keyword-only parameters are those that ``name:key=value`` sets.

    Args:
        source: where it comes from.
        needs: what it reads: ``logits``; ``evidence`` (``likelihood`` and ``state``); ``hidden`` (and ``fusion``).
    """

    def known(function: Callable[..., Joined]) -> Callable[..., Joined]:
        RULES[function.__name__] = Rule(function.__name__, function, source, frozenset(needs))
        return function

    return known


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


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities […] of ``tokens`` […] under ``logits`` […, vocab], precise enough to be summed over a book."""
    largest = logits.amax(-1, keepdim=True).detach()
    level = (logits - largest).exp_().sum(-1, dtype=precise(logits.device)).log() + largest[..., 0]
    return logits.gather(-1, tokens[..., None])[..., 0] - level


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


def linear_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture ``Σ_i w_i p_i`` [batch, position, vocab]; weights in logs.

    They have the level of the most credible expert's: where it is sure to be right they are its own, bit for bit. (The
    level of log-probabilities would round every token of a long text, and all that rounding adds up.)
    """
    level = logits.logsumexp(-1)
    level = level - level.gather(0, weights.argmax(0, keepdim=True))
    return (logits + (weights.to(logits) - level)[..., None]).logsumexp(0)


def log_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the normalised product ``Π_i p_i^{w_i}`` [batch, position, vocab]; weights in logs."""
    exponents = weights[..., None].exp().to(logits)
    return torch.where(exponents > 0, logits * exponents, 0.0).sum(0)  # of a token ruled out, 0 · −inf is 0 too


POOLS: dict[Pool, Callable[[Tensor, Tensor], Tensor]] = {"linear": linear_pool, "log": log_pool}


def _constant(weights: Tensor, logits: Tensor) -> Tensor:
    """The same log-weights [expert] at every position that ``logits`` are given for."""
    return weights[:, None, None].expand(logits.shape[:3])


def _uniform(logits: Tensor) -> Tensor:
    return logits.new_full(logits.shape[:3], -math.log(len(logits)))


@register("the paper, section 4; a product of experts (Hinton 2002)")
def mean(logits: Tensor, reading: Reading) -> Joined:
    """The paper's rule: ``logits = mean_i logits_i``.

    As distributions, the normalised geometric mean of the experts': no parameters, any number of experts, but one that
    knows nothing of a text drags the others down.
    """
    return Joined(logits.mean(0), _uniform(logits))


@register("linear opinion pool (Stone 1961); log-linear: Genest & Zidek 1986")
def weighted(logits: Tensor, reading: Reading, *, pool: Pool = "linear") -> Joined:
    """Fixed weights, the experts' own (``reweight``, ``fit``), the same for every text."""
    weights = _constant(reading.prior, logits)
    return Joined(POOLS[pool](logits, weights), weights)


@register("linear opinion pool (Stone 1961)")
def probability(logits: Tensor, reading: Reading) -> Joined:
    """The mean of the probabilities: never worse than ``ln N`` nats *per token* than any expert."""
    weights = _uniform(logits)
    return Joined(linear_pool(logits, weights), weights)


@register(
    "Bayesian mixture; with switch, fixed share (Herbster & Warmuth 1998); weights as in DEMix (Gururangan 2021) and "
    "Branch-Train-Merge (Li 2022), here exact and per token; cache as Kuhn & De Mori 1990",
    needs=["logits", "evidence"],
)
def evidence(logits: Tensor, reading: Reading, *, switch: Share = 0.0, cache: Share = 0.0) -> Joined:
    """A mixture weighted by the experts' posterior given the text so far; see `posterior` for what it promises.

    With ``cache`` = α, mixed once more with what the text repeats of itself (see ``repeats``): two sources, the experts
    together with a prior of 1 − α and the text's own repetitions with α, by `posterior` with ``switch`` = α. On any
    text of T tokens that is at most ``−ln(1 − α) − (T − 1)·ln(1 − α²)`` nats more than without a cache.
    """
    track = _track(reading, switch)
    weights = track[..., reading.kept]
    joined = Joined(linear_pool(logits, weights), weights, track)
    return _with_cache(joined, reading, cache) if cache else joined


@register("sparse posterior, as Branch-Train-Merge (Li 2022) and c-BTM (Gururangan 2023)", needs=["logits", "evidence"])
def top_k(logits: Tensor, reading: Reading, *, k: Count = 1, switch: Share = 0.0) -> Joined:
    """`evidence` of the k most credible experts alone; in cached decoding only these run (see ``ComposedModel``)."""
    track = _track(reading, switch)
    kept = track[..., reading.kept]
    weights = kept.masked_fill(~most_credible(kept, k), -math.inf).log_softmax(0)
    return Joined(linear_pool(logits, weights), weights, track)


@register("mixture of experts' gate (Jacobs 1991) on top of evidence", needs=["logits", "evidence", "hidden"])
def gate(logits: Tensor, reading: Reading, *, switch: Share = 0.0, pool: Pool = "linear") -> Joined:
    """Weights per token, a linear map of the experts' hidden states and their log-evidence (see `gate_scores`).

    It starts at exactly the evidence, in either pool. The weights of the log-linear pool need not sum to one: their sum
    sharpens or flattens the product, as a temperature would.
    """
    track = _track(reading, switch)
    scores = gate_scores(reading, track)
    weights = scores.log_softmax(0)
    return Joined(linear_pool(logits, weights) if pool == "linear" else log_pool(logits, scores), weights, track)


@register("the paper's output fine-tuning, section 4", needs=["hidden"])
def adapter(logits: Tensor, reading: Reading) -> Joined:
    """One linear map from all experts' final hidden states to logits; it starts at exactly `mean`.

    The experts' own logits are not needed; the weights that it reports are equal ones.
    """
    assert reading.hidden is not None
    joined = reading.hidden @ reading.fusion["adapter"].T
    return Joined(joined, _uniform(joined.expand(len(reading.prior), *joined.shape)))


def gate_scores(reading: Reading, track: Tensor) -> Tensor:
    """``G·[hidden; log-evidence; 1]`` [expert, batch, position], with the fitted ``gate`` G: unnormalised log-weights.

    G is [expert, sum of widths + experts + 1]; `gate_start` is the one that gives the evidence itself.
    """
    assert reading.hidden is not None
    weight = reading.fusion["gate"]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # half a precision would round the evidence
    # An expert ruled out has a weight of 0 from here on, and 0 times its log-evidence shall not be undefined.
    log_evidence = track[..., reading.kept].clamp(min=-1e4).movedim(0, -1)
    inputs = torch.cat([reading.hidden.to(weight), log_evidence.to(weight)], -1)
    return (inputs @ weight[:, :-1].T + weight[:, -1]).movedim(-1, 0)


def gate_start(experts: int, hidden: int) -> Tensor:
    """The gate [expert, hidden + expert + 1] whose weights are exactly the evidence."""
    return torch.cat([torch.zeros(experts, hidden), torch.eye(experts), torch.zeros(experts, 1)], 1)


def adapter_start(heads: Sequence[Tensor]) -> Tensor:
    """The adapter [vocab, sum of widths] whose logits are exactly the mean of the experts', from their heads."""
    return torch.cat([head / len(heads) for head in heads], 1)


def _track(reading: Reading, switch: float) -> Tensor:
    assert reading.likelihood is not None
    state = None if reading.state is None else reading.state[: len(reading.prior)]
    return posterior(reading.likelihood, reading.prior, state, switch)


def _with_cache(joined: Joined, reading: Reading, share: float) -> Joined:
    """What experts say together, mixed with what the text repeats of itself; see `evidence`."""
    tokens, likelihood, track, experts = reading.tokens, reading.likelihood, joined.evidence, len(reading.prior)
    assert tokens is not None and likelihood is not None and track is not None
    first, vocabulary = tokens.shape[1] - likelihood.shape[-1], joined.logits.shape[-1]
    start = reading.prior[:, None].expand(track.shape[:2]) if reading.state is None else reading.state[:experts]
    before = torch.cat([start.to(track)[..., None], track[..., :-1]], -1)
    said = torch.stack([(before + likelihood).logsumexp(0), repeated(tokens, first, vocabulary).to(likelihood)])
    prior = log_prior((1 - share, share), tokens.device)
    both = posterior(said, prior, None if reading.state is None else reading.state[experts:], share)
    weights = both[..., reading.kept]
    at = torch.arange(first, tokens.shape[1], device=tokens.device)[reading.kept]
    own = repeats(tokens, at, vocabulary).to(joined.logits)
    return Joined(
        linear_pool(torch.stack([joined.logits, own]), weights),
        torch.cat([joined.weights + weights[:1], weights[1:]]),
        torch.cat([track, both]),
    )
