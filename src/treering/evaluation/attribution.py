"""Which expert knew which word: a composition's reading of a text, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.composition.model import ComposedModel
from treering.composition.onward import Learnt, join_onward
from treering.corpus import Window, windows
from treering.errors import TreeringError
from treering.tokenizer import encode, separator
from treering.training.loss import log_likelihood

Span = tuple[int, int]
ITSELF = "the text itself"
"""Who knows what the text repeats of itself, where a rule has a cache."""


class Share(TypedDict):
    """What one expert did for a text: its share of the credit, and how well it would have read the text alone."""

    expert: str
    tokens: float
    bytes: float
    bits_per_byte: float


@dataclass(frozen=True)
class Attribution:
    """How a composition read a text.

    Attributes:
        text: what was read.
        experts: their names; of a rule with a cache the last is `ITSELF`.
        rule: what joined them, as `treering.composition.rule` reads it.
        spans: first character of each token, and the one after its last. Tokens that are bytes of one character all
            have that character's span.
        weights: log-weight that the rule gave each expert before the token was seen [expert, token].
        likelihood: log-probability that each expert gave the token [expert, token].
        joined: log-probability that the composition gave it [token].
    """

    text: str
    experts: tuple[str, ...]
    rule: str
    spans: tuple[Span, ...]
    weights: Tensor
    likelihood: Tensor
    joined: Tensor

    @property
    def credit(self) -> Tensor:
        """Each expert's share in the token [expert, token], ``c_i ∝ w_i · p_i(token)``.

        In a mixture of probabilities this is the posterior, given the token, of the expert that it was drawn from; of
        other rules it is the same reading of their weights.
        """
        return credit(self.weights, self.likelihood)

    @property
    def bits_per_byte(self) -> float:
        """What the text cost the composition."""
        return float(_bits(self.joined.sum())) / len(self.text.encode())

    def pieces(self) -> Attribution:
        """The same with tokens that share characters as one, so that the spans, end to end, are exactly the text.

        A piece counts as one long token: the weights before it, the sum of its log-probabilities. What a tokenizer
        drops from the text (stripped blanks, say) goes with the piece before it.
        """
        firsts = _firsts(self.spans)
        cuts = [0, *(self.spans[first][0] for first in firsts[1:]), len(self.text)]
        begins = torch.zeros(len(self.spans), dtype=torch.long)
        begins[firsts[1:]] = 1
        piece = begins.cumsum(0)
        return Attribution(
            self.text,
            self.experts,
            self.rule,
            tuple(pairwise(cuts)),
            self.weights[:, firsts],
            self.likelihood.new_zeros(len(self.experts), len(firsts)).index_add(1, piece, self.likelihood),
            self.joined.new_zeros(len(firsts)).index_add(0, piece, self.joined),
        )

    def shares(self) -> list[Share]:
        """For each expert its mean credit over tokens and over bytes, and its own bits per byte."""
        pieces = self.pieces()
        sizes = torch.tensor([len(self.text[start:end].encode()) for start, end in pieces.spans]).double()
        by_token, by_byte = self.credit.mean(-1), pieces.credit @ sizes / sizes.sum()
        alone = _bits(self.likelihood.sum(-1)) / sizes.sum()
        return [
            Share(expert=name, tokens=float(t), bytes=float(b), bits_per_byte=float(bits))
            for name, t, b, bits in zip(self.experts, by_token, by_byte, alone, strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A record for each token: its span and characters, its bits, and for each expert weight, bits and credit."""
        columns = [values.T.tolist() for values in (self.weights.exp(), _bits(self.likelihood), self.credit)]
        return [
            {
                "start": start,
                "end": end,
                "text": self.text[start:end],
                "bits": round(bits, 4),
                "experts": {
                    name: {"weight": round(weight, 6), "bits": round(own, 4), "credit": round(credit, 6)}
                    for name, weight, own, credit in zip(self.experts, *of_token, strict=True)
                },
            }
            for (start, end), bits, *of_token in zip(self.spans, _bits(self.joined).tolist(), *columns, strict=True)
        ]


def credit(weights: Tensor, likelihood: Tensor) -> Tensor:
    """Each expert's share in a token [expert, …], from log-weights and log-probabilities; see `Attribution.credit`."""
    return (weights + likelihood).softmax(0)


@torch.no_grad()
def explain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> Attribution:
    """How a composition reads ``text`` as a document of its own, by the rule that it has at present.

    A text longer than the context is read in windows as by `document_losses`, with at least half a context before each
    token; what the rule learns goes on from window to window.

    Raises:
        TreeringError: the model is not a composition, or the text has no tokens.
    """
    composition = require_composition(model)
    ids = encode(tokenizer, [text])[0]
    if not ids:
        raise TreeringError("There is nothing to explain: the text is empty.")
    was_training = composition.training
    composition.eval()
    cut = windows([ids], separator(tokenizer), context_length(composition.config))
    weights, likelihood, joined = _read(composition, cut)
    composition.train(was_training)
    names = (*(name for name, _ in composition.named_experts()), ITSELF)[: len(weights)]
    return Attribution(text, names, str(composition.rule), _spans(tokenizer, text), weights, likelihood, joined)


def require_composition(model: PreTrainedModel) -> ComposedModel:
    """Refuse a model that has no experts.

    Raises:
        TreeringError: the model is not a composition.
    """
    if not isinstance(model, ComposedModel):
        raise TreeringError(
            "This model is one expert alone: nothing is joined that could be compared. Give a composition: "
            "treering compose EXPERT EXPERT -o DIR."
        )
    return model


def _read(model: ComposedModel, cut: Iterable[Window]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and log-probabilities [expert, token], the composition's [token], of all tokens that windows score."""
    parts, before = list[tuple[Tensor, Tensor, Tensor]](), list[Learnt]()
    for window in cut:
        tokens = torch.tensor([window.tokens], device=model.device)
        heard, first = model.read(tokens[:, :-1], hidden="hidden" in model.rule.needs), window.scored_from - 1
        found = join_onward([model.rule], *heard, tokens[:, 1:], before, first if before else 0)
        (joined,), new = found.joined, slice(0 if before else first, None)
        target = found.targets[0, new]
        itself = () if joined.repeated is None else (log_likelihood(joined.repeated[:, new], target),)
        own = torch.cat([log_likelihood(found.logits[:, 0, new], target), *itself])
        parts.append((joined.weights[:, 0, new], own, log_likelihood(joined.logits[0, new], target)))
        before = [found.learnt(0, found.targets.shape[1])]
    weights, likelihood, joint = (torch.cat(part, -1).double().cpu() for part in zip(*parts, strict=True))
    return weights, likelihood, joint


def _spans(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[Span, ...]:
    """The characters of each token that `encode` makes of the text."""
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return tuple((start, end) for start, end in encoding["offset_mapping"])


def _firsts(spans: Sequence[Span]) -> list[int]:
    """Tokens that begin a character which none before them touches."""
    firsts, begin, end = [0], spans[0][0], spans[0][1]
    for token, (start, stop) in enumerate(spans[1:], 1):
        if start >= end > begin:
            firsts.append(token)
            begin = start
        end = max(end, stop)
    return firsts


def _bits(log_probability: Tensor) -> Tensor:
    return -log_probability / math.log(2)
