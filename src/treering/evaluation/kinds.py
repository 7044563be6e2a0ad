"""Which experts are of one kind, found and not told: their evidence stays close on each other's held-out text.

How close that is, is measured as what joins them would see it. The option ``together`` of the rule ``evidence`` lets
those speak as one whom slow evidence leaves a weight (``treering.composition.together``). Where one of two experts
needs g nats a token more than the other, that evidence makes of the weight w of the one behind, token by token,

    w ← (1 − α)·w·q / (w·q + 1 − w) + α/2,    q = exp(−RATE·g),    w = 1/2 at the beginning,

with the option's share α, as if the g of a document were the same at each of its tokens. The w at the document's end
is the *say* that the one behind keeps there: 1/2 where both know it equally well, 0.1 in the long run where it needs
0.91 nats a token more, 0.03 with 4. It is the same whichever of the two is behind, and a short document, of which
little can be told, leaves it near 1/2.

Two experts' say on a text is that in the middle of its documents (the median, as some pages of a language are half in
another), and between them it is the least on any own text of either. They are of one kind where that is `LEAST` or
more, and so are those who are linked by a third: *single linkage*, the parts of a graph that hang together. Complete
linkage would ask it of every pair, but where two links are equally close its parts depend on whom one begins with,
and what is found shall not depend on order or names. Whom a third alone links can be seen in the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypedDict

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from treering.composition import DEFAULT_RULE, ComposedModel
from treering.composition.together import RATE
from treering.evaluation.bits import DocumentLosses, paired_change
from treering.evaluation.forgetting import composition_losses, own_texts
from treering.evaluation.table import Row, row
from treering.tokenizer import encode

SHARE = 0.01
"""The share α of `TOGETHER`, at which slow evidence goes back to where it began."""
TOGETHER = f"{DEFAULT_RULE},together={SHARE:g}"
"""The rule that lets experts of one kind speak together."""
LEAST = 0.1
"""The say that experts of one kind leave each other: owners of one language 0.2 to 0.4, of two 0.02 (joining.md)."""
SETTLED = 1000
"""Tokens after which the say changes no more: what is left of its beginning shrinks by α at least with each."""

Losses = Mapping[str, Mapping[str, DocumentLosses]]
"""By text, by expert, on the same documents."""


class Kinship(TypedDict):
    """The say that two experts leave each other on the one of their own texts on which it is least.

    ``low`` and ``high`` bound the 95% interval of the median over documents.
    """

    experts: tuple[str, str]
    text: str
    say: float
    low: float
    high: float
    documents: int


class TogetherGain(TypedDict):
    """Bits per byte by `TOGETHER` relative to those by the default rule (−0.01: one percent fewer), 95% interval."""

    text: str
    change: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class Kinds:
    """Who knows what, and who is of one kind.

    Attributes:
        rows: bits per byte of every expert on every text.
        own: by expert, its own texts, told or of its record; where none is, the one on which it is best.
        pairs: all, in the experts' order.
        kinds: the experts of each.
        heard: by text, those who have a say beside the best expert there, and that one.
        gains: what speaking together changes, text by text.
        least: the say that those of one kind leave each other.
    """

    rows: list[Row]
    own: dict[str, list[str]]
    pairs: list[Kinship]
    kinds: list[list[str]]
    heard: dict[str, list[str]]
    gains: list[TogetherGain]
    least: float

    @property
    def doubtful(self) -> list[Kinship]:
        """The pairs of which more documents could say the opposite."""
        return [pair for pair in self.pairs if pair["low"] < self.least <= pair["high"]]


def find_kinds(
    model: ComposedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    own: Mapping[str, Sequence[str]] | None = None,
    least: float = LEAST,
) -> Kinds:
    """Measure every expert of a composition on every text, and find who is of one kind.

    Args:
        texts: held-out documents by the text's name.
        own: by expert, the names of its own texts where the model's records do not say (see `own_texts`).
        least: from 0, where all are of one kind, to 1/2, where only those are that are equal.

    Raises:
        TreeringError: see `composition_losses` and `own_texts`.
    """
    owned = own_texts(model, texts, own or {})
    measured = {
        text: composition_losses(model, tokenizer, found, [DEFAULT_RULE, TOGETHER]) for text, found in texts.items()
    }
    tokens = {text: _counted(tokenizer, found) for text, found in texts.items()}
    losses = {text: {name: found[name] for name in owned} for text, found in measured.items()}
    gains = [_gain(text, found[TOGETHER], found[DEFAULT_RULE]) for text, found in measured.items()]
    return kinds_of(losses, tokens, owned, gains, least)


def kinds_of(
    losses: Losses,
    tokens: Mapping[str, np.ndarray],
    own: Mapping[str, Sequence[str]],
    gains: Sequence[TogetherGain] = (),
    least: float = LEAST,
) -> Kinds:
    """Who is of one kind by what they lost; see `find_kinds`.

    Args:
        tokens: by text, those of each document [document].
        own: by expert, in their order, its own texts; of one that has none, the text on which it is best is taken.
    """
    owned = {name: list(its) or [best_text(losses, name)] for name, its in own.items()}
    pairs = [_pair(losses, tokens, owned, *two, least) for two in combinations(owned, 2)]
    return Kinds(
        rows=[row(name, text, None, found[name].score()) for name in owned for text, found in losses.items()],
        own=owned,
        pairs=pairs,
        kinds=linked(list(owned), [pair["experts"] for pair in pairs if pair["say"] >= least]),
        heard={text: _heard(found, tokens[text], list(owned), least) for text, found in losses.items()},
        gains=list(gains),
        least=least,
    )


def says(one: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The say [document] that the one of two experts that is behind keeps, from the nats [document] of each.

    Args:
        tokens: of each document [document].
    """
    behind = np.exp(-RATE * np.abs(one - other) / tokens)
    say = np.full(len(tokens), 0.5)
    for read in range(min(int(tokens.max()), SETTLED)):
        after = say * behind / (say * behind + 1 - say)
        say = np.where(read < tokens, (1 - SHARE) * after + SHARE / 2, say)
    return say


def linked(names: Sequence[str], links: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The names in parts: two are in one if links lead from one to the other. All is in the order of the names."""
    part = {name: {name} for name in names}
    for one, other in links:
        part[one] |= part[other]
        part |= dict.fromkeys(part[one], part[one])
    found = {min(map(names.index, members)): members for members in part.values()}
    return [sorted(found[first], key=names.index) for first in sorted(found)]


def best_text(losses: Losses, name: str) -> str:
    """The text on which an expert is best: furthest ahead of the others' best, or least behind it, by their ratio."""

    def standing(text: str) -> float:
        own, others = losses[text][name], [found.nats.sum() for who, found in losses[text].items() if who != name]
        return float(own.nats.sum() / min(others)) if others else own.bits_per_byte

    return min(losses, key=standing)


def middle(values: np.ndarray) -> tuple[float, float, float]:
    """The median of values, and the order statistics that bound its 95% interval (binomial, as a normal)."""
    ordered, count = np.sort(values), len(values)
    least = max(round(count / 2 - 1.96 * math.sqrt(count) / 2), 1)
    return float(np.median(ordered)), float(ordered[least - 1]), float(ordered[-least])


def as_kinds_table(found: Kinds) -> Table:
    """Experts down and across; each cell the say that they leave each other and its interval, bold if of one kind."""
    table, names = Table("say beside", box=None), list(found.own)
    for name in names:
        table.add_column(Text(name), justify="right")
    cells = {pair["experts"]: _cell(pair, found.least) for pair in found.pairs}
    for name in names:
        table.add_row(Text(name), *(cells.get((name, other)) or cells.get((other, name), "") for other in names))
    return table


def _pair(
    losses: Losses,
    tokens: Mapping[str, np.ndarray],
    own: Mapping[str, Sequence[str]],
    one: str,
    other: str,
    least: float,
) -> Kinship:
    def on(text: str) -> np.ndarray:
        return says(losses[text][one].nats, losses[text][other].nats, tokens[text])

    found = {text: on(text) for text in losses if text in (*own[one], *own[other])}
    text = min(found, key=lambda text: np.median(found[text]))
    say, low, high = (round(value, 4) for value in middle(found[text]))
    return Kinship(experts=(one, other), text=text, say=say, low=low, high=high, documents=len(found[text]))


def _heard(found: Mapping[str, DocumentLosses], tokens: np.ndarray, names: Sequence[str], least: float) -> list[str]:
    total = {name: found[name].nats.sum() for name in names}
    best = [found[name].nats for name in names if total[name] == min(total.values())]

    def say(name: str) -> float:
        return max(middle(says(found[name].nats, nats, tokens))[0] for nats in best)

    return [name for name in names if round(say(name), 4) >= least]


def _gain(text: str, joined: DocumentLosses, before: DocumentLosses) -> TogetherGain:
    change = paired_change(joined, before)
    return TogetherGain(
        text=text,
        change=round(change.change, 5),
        low=round(change.low, 5),
        high=round(change.high, 5),
        documents=len(joined.nats),
    )


def _counted(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> np.ndarray:
    """The tokens of each text that is measured, which an empty one is not [document]."""
    return np.array([len(ids) for ids in encode(tokenizer, [text for text in texts if text])])


def _cell(pair: Kinship, least: float) -> str:
    text = f"{pair['say']:.0%}"
    if pair["documents"] > 1:
        text += f"\n{pair['low']:.0%} … {pair['high']:.0%}"
    return f"[bold]{text}[/]" if pair["say"] >= least else text
