"""What is said of the next token while a text is read or written: by the model, and by each of its experts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treering.composition import ComposedModel, Joined, Reading, Rule
from treering.evaluation.attribution import ITSELF, credit
from treering.serving.logprobs import Said, Voice, said


class Heard(NamedTuple):
    """What was said after some positions of a text.

    Attributes:
        logits: the model's [position, vocab].
        voices: those of everyone who speaks in it [voice, position, vocab], see `voices_of`; None if nobody asked.
        weights: their log-weights [voice, position].
        product: log of the share that the rule gave the experts' product (``together``) [position]; None without one.
    """

    logits: Tensor
    voices: Tensor | None = None
    weights: Tensor | None = None
    product: Tensor | None = None

    def since(self, position: int) -> Heard:
        """The same from a position on."""
        voices, weights = (None if of is None else of[:, position:] for of in (self.voices, self.weights))
        return Heard(self.logits[position:], voices, weights, None if self.product is None else self.product[position:])


def voices_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Who speaks in a model: a composition's experts, and the text itself where its rule has a cache."""
    if not isinstance(model, ComposedModel):
        return ()
    return (*model.experts, *([ITSELF] if "cache" in model.rule.beside else []))


def heard_by(hear: Callable[[Heard], None], model: PreTrainedModel, voices: bool = False) -> PreTrainedModel:
    """The same model, on the same modules, with somebody who hears what it says of one text [1, position].

    Args:
        voices: hear a composition's experts as well.
    """
    other = copy.copy(model)
    if voices and isinstance(other, ComposedModel):
        other.rule = _heard_joining(hear, other.rule)
        return other
    other._forward_hooks = OrderedDict(model._forward_hooks)
    other.register_forward_hook(lambda module, inputs, output: hear(Heard(output.logits[0])))
    return other


def _heard_joining(hear: Callable[[Heard], None], rule: Rule) -> Rule:
    """A rule, with somebody who hears what it joins; the experts' logits are made even if it can do without."""

    def join(logits: Tensor, reading: Reading, **parameters: Any) -> Joined:
        joined = rule.function(logits, reading, **parameters)
        voices = logits if joined.repeated is None else torch.cat([logits, joined.repeated.to(logits)[None]])
        hear(Heard(joined.logits[0], voices[:, 0], joined.weights[:, 0], _product(rule, joined, reading)))
        return joined

    return replace(rule, function=join, needs=rule.needs | {"logits"})


def _product(rule: Rule, joined: Joined, reading: Reading) -> Tensor | None:
    """The log-share of the experts' product [position], from what a rule with ``together`` has learnt (``rules``)."""
    if "together" not in rule.beside:
        return None
    assert joined.evidence is not None
    share = joined.evidence[2 * len(reading.prior) + 2]
    if "cache" in rule.beside:
        share = share + joined.evidence[-2]
    return share[0, reading.kept]


def told(heard: Heard, ids: Tensor, alternatives: int, names: tuple[str, ...] = ()) -> list[Said]:
    """What was said of the tokens that came [position], by the model and by everyone who speaks in it, in their order.

    Raises:
        TreeringError: it is no number.
    """
    if heard.voices is None or heard.weights is None:
        return said(heard.logits, ids, alternatives)
    count, weights = len(heard.voices), heard.weights.double()
    # Whom ``top_k`` lets rest says nothing, which is 0 everywhere.
    resting = weights.isneginf() & ~heard.voices.any(-1)
    rows = torch.cat([heard.logits[None], heard.voices.to(heard.logits)]).flatten(0, 1)
    own, *others = _by(len(ids), said(rows, ids.repeat(1 + count), alternatives))
    likelihood = torch.tensor([[one.logprob for one in of] for of in others]).to(weights)
    columns = [table.T.tolist() for table in (weights.exp(), credit(weights, likelihood), resting)]
    spoken = [
        [
            Voice(name, weight, share, None if rests else one.logprob, None if rests else one.top)
            for name, weight, share, rests, one in zip(names, *of_token, strict=True)
        ]
        for of_token in zip(*columns, zip(*others, strict=True), strict=True)
    ]
    shares = [None] * len(ids) if heard.product is None else heard.product.exp().tolist()
    return [one._replace(voices=voices, product=share) for one, voices, share in zip(own, spoken, shares, strict=True)]


def _by(length: int, tokens: list[Said]) -> list[list[Said]]:
    """Cut into runs of so many."""
    return [tokens[begin : begin + length] for begin in range(0, len(tokens), length)]
