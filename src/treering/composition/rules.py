"""Rules that join experts at their output, registered by name: the paper's (section 4) and better ones.

A rule is a pure function ``rule(logits, reading, **parameters) -> Joined``: from what the experts say of the next
token, and from how they did on the tokens before it. Most weigh the experts and pool their distributions, linearly (a
mixture of probabilities) or log-linearly (a weighted mean of logits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from treering.composition.pools import POOLS, Pool, linear_pool, log_pool
from treering.composition.posterior import log_prior, most_credible, posterior
from treering.composition.repeats import repeated, repeats
from treering.composition.together import RATE, Said, exponents, levels, weighed

Need = Literal["logits", "evidence", "hidden"]
Share = Annotated[float, {"ge": 0, "lt": 1}]
Count = Annotated[int, {"ge": 1}]
"""A number with its limits; who reads a rule's name checks them (``treering.composition.specs``)."""


@dataclass(frozen=True)
class Reading:
    """What experts made of a stretch of text, beside their logits.

    Attributes:
        prior: log-weights of the experts before any text [expert], normalised.
        likelihood: log-probability that each expert gave to the token at each position, given all before it [expert,
            batch, position]; 0 where nothing was to be predicted (a text's first token, padding). Of what follows, a
            rule may ask for as much as it ``needs`` (see `register`).
        state: what `Joined.evidence` was after everything that was read before this stretch [row, batch], or more rows;
            None at a beginning.
        hidden: final hidden states of all experts, one after the other [batch, position, sum of widths].
        fusion: what was fitted on top of the experts, by name.
        kept: the positions that ``logits`` and ``hidden`` are given for.
        tokens: of the text from its beginning to the end of this stretch [batch, position of the text]; -1 for padding.
        said: the logits [expert, batch, position, vocab] of some of the stretch's positions, whichever are kept.
    """

    prior: Tensor
    likelihood: Tensor | None = None
    state: Tensor | None = None
    hidden: Tensor | None = None
    fusion: Mapping[str, Tensor] = field(default_factory=dict)
    kept: slice | Tensor = field(default_factory=lambda: slice(None))
    tokens: Tensor | None = None
    said: Said | None = None


@dataclass(frozen=True)
class Joined:
    """What a rule returns.

    Attributes:
        logits: of the composition, [batch, position, vocab]; their softmax is its distribution.
        weights: log-weight of each expert at those positions [expert, batch, position], and after the experts' that of
            the ``cache`` where there is one.
        evidence: what has been learnt from the text after each position of the reading [row, batch, position], whose
            last is the next reading's ``state``: log-weights of the experts, and whatever else a rule goes on with (at
            most `most_rows`); None for rules that need no evidence.
        repeated: what the text itself said, log-probabilities [batch, position, vocab], where there is a ``cache``.
    """

    logits: Tensor
    weights: Tensor
    evidence: Tensor | None = None
    repeated: Tensor | None = None


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

    @property
    def beside(self) -> set[str]:
        """What is mixed with the experts' evidence: ``together``, ``cache``."""
        return {name for name in ("together", "cache") if self.parameters.get(name)}

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


def most_rows(experts: int) -> int:
    """Of `Joined.evidence`, for so many experts: their weights, what `_with_product` learns, and `_with_cache`."""
    return 2 * experts + 5


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
def evidence(
    logits: Tensor, reading: Reading, *, switch: Share = 0.0, together: Share = 0.0, cache: Share = 0.0
) -> Joined:
    """A mixture weighted by the experts' posterior given the text so far; see `posterior` for what it promises.

    What else could be said is mixed with it by `posterior`, too, as two sources of which each may take over:

    - With ``together`` = α, a product of the experts that do nearly as well as the best (see ``together``), both with a
      prior of 1/2 and a ``switch`` of α. On any text of T tokens that is at most ``ln 2 − (T − 1)·ln(1 − α/2)`` nats
      more than without.
    - With ``cache`` = α, what the text repeats of itself (see ``repeats``), with a prior and a ``switch`` of α: at most
      ``−ln(1 − α) − (T − 1)·ln(1 − α²)`` nats more than without.
    """
    track = _track(reading, switch)
    weights = track[..., reading.kept]
    joined = Joined(linear_pool(logits, weights), weights, track)
    if not together and not cache:
        return joined
    likelihood = (_before(track, _start(reading)) + _said(reading)).logsumexp(0)
    if together:
        joined, likelihood = _with_product(joined, likelihood, logits, reading, together)
    return _with_cache(joined, likelihood, reading, cache) if cache else joined


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
    return posterior(_said(reading), reading.prior, _state(reading, 0, len(reading.prior)), switch)


def _said(reading: Reading) -> Tensor:
    assert reading.likelihood is not None
    return reading.likelihood


def _state(reading: Reading, first: int, count: int) -> Tensor | None:
    """So many rows of what was learnt before this stretch [row, batch]."""
    return None if reading.state is None else reading.state[first : first + count]


def _start(reading: Reading, first: int = 0) -> Tensor:
    """The experts' log-weights [expert, batch] before this stretch, from the rows that begin with ``first``."""
    state = _state(reading, first, len(reading.prior))
    return reading.prior[:, None].expand(_said(reading).shape[:2]) if state is None else state


def _before(track: Tensor, start: Tensor) -> Tensor:
    """What was known before each token […, position], from what is known after each, and at the start […]."""
    return torch.cat([start.to(track)[..., None], track[..., :-1]], -1)


def _with_product(
    joined: Joined, likelihood: Tensor, logits: Tensor, reading: Reading, share: float
) -> tuple[Joined, Tensor]:
    """The experts' mixture, mixed with their product; and what both together gave the tokens [batch, position].

    Learnt are, beside the evidence: the slow evidence [expert], the level of the product at the next token, and how far
    mixture and product are believed [2].
    """
    said, track, count = _said(reading), joined.evidence, len(reading.prior)
    assert track is not None and reading.said is not None
    slow = posterior(RATE * said, reading.prior, _state(reading, count, count), share)
    powers, known = exponents(slow), _state(reading, 2 * count, 1)
    level = levels(reading.said, powers, logits.shape[-1]).to(track)
    level_before = _before(level, level.new_zeros(len(level)) if known is None else known[0])
    product = weighed(exponents(_before(slow, _start(reading, count))), said) - level_before
    nothing = (said == 0).all(0) | level_before.isneginf()
    sources = torch.stack([likelihood, torch.where(nothing, likelihood, product)])
    both, together = _either(sources, (0.5, 0.5), _state(reading, 2 * count + 1, 2), share)
    weights, impossible = both[..., reading.kept], level[..., reading.kept].isneginf()[..., None]
    # Where each expert rules out what the others allow there is no product: the mixture speaks for both.
    spoken = torch.where(impossible, joined.logits, log_pool(logits, powers[..., reading.kept]))
    pooled = linear_pool(torch.stack([joined.logits, spoken]), weights)
    credited = torch.logaddexp(joined.weights + weights[0], slow[..., reading.kept] + weights[1])
    return Joined(pooled, credited, torch.cat([track, slow, level[None], both])), together


def _with_cache(joined: Joined, likelihood: Tensor, reading: Reading, share: float) -> Joined:
    """What experts say together, mixed with what the text repeats of itself; see `evidence`."""
    tokens, track = reading.tokens, joined.evidence
    assert tokens is not None and track is not None
    first, vocabulary = tokens.shape[1] - likelihood.shape[-1], joined.logits.shape[-1]
    sources = torch.stack([likelihood, repeated(tokens, first, vocabulary).to(likelihood)])
    both, _ = _either(sources, (1 - share, share), _state(reading, len(track), 2), share)
    weights = both[..., reading.kept]
    at = torch.arange(first, tokens.shape[1], device=tokens.device)[reading.kept]
    own = repeats(tokens, at, vocabulary).to(joined.logits)
    return Joined(
        linear_pool(torch.stack([joined.logits, own]), weights),
        torch.cat([joined.weights + weights[:1], weights[1:]]),
        torch.cat([track, both]),
        own,
    )


def _either(sources: Tensor, prior: tuple[float, float], state: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """The log-weights of two sources after each token [2, batch, position], and what both together gave it.

    Args:
        sources: log-probability that each gave the tokens [2, batch, position].
        state: those weights before the first [2, batch]; None at a beginning.
    """
    given = log_prior(prior, sources.device)
    weights = posterior(sources, given, state, share)
    start = given[:, None].expand(sources.shape[:2]) if state is None else state
    return weights, (_before(weights, start) + sources).logsumexp(0)
