"""Bits per byte on held-out documents, with an interval over documents.

Bits per byte compares models across tokenizers: the information a model needs for a text, per UTF-8 byte of it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.composition import ComposedModel, Rule
from treering.composition.onward import Learnt, Onward, join_onward
from treering.corpus import Window, windows
from treering.errors import TreeringError
from treering.tokenizer import encode, separator
from treering.training.loss import log_likelihood

LOGITS_AT_ONCE = 2**25
"""Logits per forward pass (tokens × vocabulary, times experts): 128 MiB in float32."""

DRAWN_AT_ONCE = 2**22
"""How often each document was drawn (documents × resamples) that is held at once: 32 MiB."""


@dataclass(frozen=True)
class Score:
    """Bits per byte of one model on one text, with a 95% interval (percentile bootstrap over documents)."""

    bits_per_byte: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class DocumentLosses:
    """What each document cost: ``nats`` [document] in all, over ``bytes`` [document] of UTF-8."""

    nats: np.ndarray
    bytes: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        """Total bits over total bytes."""
        return float(self.nats.sum() / self.bytes.sum() / math.log(2))

    def score(self, seed: int = 0) -> Score:
        """The bits per byte, with the interval of 2,000 resamples of the documents."""
        ratios = resampled_ratios(self.nats, self.bytes, seed) / math.log(2)
        low, high = np.quantile(ratios, [0.025, 0.975])
        return Score(self.bits_per_byte, float(low), float(high), len(self.nats))


@dataclass(frozen=True)
class Change:
    """One model's bits per byte relative to another's on the same documents (−0.01: one percent fewer)."""

    change: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the 95% interval excludes no change."""
        return self.low > 0 or self.high < 0


def paired_change(model: DocumentLosses, reference: DocumentLosses, seed: int = 0) -> Change:
    """Relative change from ``reference`` to ``model``, with the interval of a paired bootstrap over documents.

    Both are resampled together, so what makes a document hard for both falls out; two intervals that overlap may still
    belong to models that differ clearly.
    """
    ratios = [resampled_ratios(losses.nats, losses.bytes, seed) for losses in (model, reference)]
    low, high = np.quantile(ratios[0] / ratios[1] - 1, [0.025, 0.975])
    return Change(float(model.nats.sum() / reference.nats.sum() - 1), float(low), float(high))


def resampled_ratios(numerator: np.ndarray, denominator: np.ndarray, seed: int, resamples: int = 2000) -> np.ndarray:
    """Ratio of sums [resample] over documents drawn with replacement (Efron 1979): long documents count as they are.

    The same seed draws the same documents, so that two models' ratios may be subtracted pair by pair.
    """
    documents = len(numerator)
    rng, odds = np.random.default_rng(seed), np.full(documents, 1 / documents)
    ratios, at_once = [], max(1, DRAWN_AT_ONCE // documents)
    for done in range(0, resamples, at_once):
        counts = rng.multinomial(documents, odds, size=min(at_once, resamples - done))
        ratios.append((counts @ numerator) / (counts @ denominator))
    return np.concatenate(ratios)


def spread(low: float, high: float, count: int, form: str = ".3f") -> str:
    """Half the width of an interval, to stand behind a value; nothing where it is over one thing and there is none."""
    return f" ± {(high - low) / 2:{form}}" if count > 1 else ""


Show = Callable[[Sequence[list[Window]]], Iterable[list[Window]]]
"""Shows people how the work on batches of windows goes on, while they are taken out of it one by one."""


def document_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], show: Show = iter
) -> DocumentLosses:
    """Negative log-likelihood of each text, every token given all before it back to ``</s>``, as in training.

    A document longer than the model's context is read in windows that overlap by half, so that every token but the
    first has at least half a context before it; what a composition's rule learns from the document goes on from window
    to window. The end of the document is not scored.

    Raises:
        TreeringError: there is no text, or only empty ones.
    """

    return losses_by(own_surprise(model), model, tokenizer, texts, show)[0]


Surprise = Callable[[Tensor, Tensor, Sequence[Learnt], int], tuple[Tensor, Onward | None]]
"""One or more ways to predict: from input and target IDs [batch, position], nats [way, batch, position] of the targets.

Where windows go on in documents, it is also given what each of these had taught before and from which position on the
window is new (see `join_onward`); it has only those positions then. It returns what the next windows go on from, or
None, if nothing is carried from window to window."""


def own_surprise(model: PreTrainedModel) -> Surprise:
    """The one way to predict that is the model's own; what a rule learns goes on from window to window."""
    if isinstance(model, ComposedModel) and "evidence" in model.rule.needs:
        return joined_surprise(model, [model.rule])

    def surprise(inputs: Tensor, targets: Tensor, before: Sequence[Learnt], first: int) -> tuple[Tensor, None]:
        return -log_likelihood(model(input_ids=inputs, use_cache=False).logits, targets)[None], None

    return surprise


def joined_surprise(model: ComposedModel, rules: Sequence[Rule], experts: bool = False) -> Surprise:
    """Ways to predict with a composition: ``rules``, after all its ``experts`` alone if they are asked for."""
    hidden = any("hidden" in rule.needs for rule in rules)

    def surprise(inputs: Tensor, targets: Tensor, before: Sequence[Learnt], first: int) -> tuple[Tensor, Onward]:
        found = join_onward(rules, *model.read(inputs, hidden=hidden), targets, before, first)
        alone = [log_likelihood(found.logits, found.targets)] if experts else []
        said = [log_likelihood(each.logits, found.targets)[None] for each in found.joined]
        return -torch.cat([*alone, *said]), found

    return surprise


def losses_by(
    surprise: Surprise,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    show: Show = iter,
) -> list[DocumentLosses]:
    """Losses of each text under one or more ways to predict with ``model``, measured together; see `document_losses`.

    Raises:
        TreeringError: there is no text, or only empty ones.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise TreeringError("There is no text to measure on.")
    cut = windows(encode(tokenizer, texts), separator(tokenizer), context_length(model.config))
    nats = window_losses(surprise, model, cut, len(texts), show)
    sizes = np.array([len(text.encode()) for text in texts])
    return [DocumentLosses(total, sizes) for total in nats]


def speakers(model: PreTrainedModel) -> int:
    """How many models' logits exist at once when it reads."""
    return len(model.config.experts) if isinstance(model, ComposedModel) else 1


@torch.no_grad()
def window_losses(
    surprise: Surprise, model: PreTrainedModel, cut: Iterable[Window], documents: int, show: Show = iter
) -> list[np.ndarray]:
    """Nats [document] of the scored tokens of windows, for each way to predict; see `losses_by`.

    Windows of one document come in its order, each going on where the one before ends.
    """
    cut = list(cut)
    at_once = max(1, LOGITS_AT_ONCE // (model.config.vocab_size * speakers(model)))
    ends = {window.document: window for window in cut}
    nats: list[np.ndarray] = []
    learnt: dict[int, Learnt] = {}
    was_training = model.training
    model.eval()
    for batch in show(list(_batches(cut, at_once))):
        width = len(batch[-1].tokens)
        # Padding stands to the right: under causal attention nothing that is scored ever sees it.
        padded = [window.tokens + [0] * (width - len(window.tokens)) for window in batch]
        input_ids = torch.tensor(padded, device=model.device)
        before = [learnt.pop(window.document) for window in batch if window.document in learnt]
        first = batch[0].scored_from - 1 if before else 0
        losses, found = surprise(input_ids[:, :-1], input_ids[:, 1:], before, first)
        losses = losses.double().cpu()
        nats = nats or [np.zeros(documents) for _ in losses]
        for row, window in enumerate(batch):
            count = len(window.tokens) - 1 - first
            for total, rows in zip(nats, losses, strict=True):
                total[window.document] += rows[row, window.scored_from - 1 - first : count].sum().item()
            if found is not None and ends[window.document] is not window:
                learnt[window.document] = found.learnt(row, count)
    model.train(was_training)
    return nats


def uniform_losses(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> DocumentLosses:
    """The baseline that knows nothing: every token equally likely."""
    texts = [text for text in texts if text]
    tokens = np.array([len(ids) for ids in encode(tokenizer, texts)])
    return DocumentLosses(tokens * math.log(len(tokenizer)), np.array([len(text.encode()) for text in texts]))


def _batches(cut: Iterable[Window], tokens_at_once: int) -> Iterator[list[Window]]:
    """Windows of like length whose padded size stays within ``tokens_at_once``.

    All of a batch begin their documents, or all go on in theirs: as far from the beginning and with as much context.
    None comes before those that precede it in its document.
    """
    scored, groups = Counter[int](), defaultdict[tuple[int, int], list[Window]](list)
    for window in cut:
        done = scored[window.document]
        scored[window.document] += len(window.tokens) - window.scored_from
        groups[done, window.scored_from if done else 0].append(window)
    for _, alike in sorted(groups.items()):
        batch: list[Window] = []
        for window in sorted(alike, key=lambda window: len(window.tokens)):
            if batch and (len(batch) + 1) * len(window.tokens) > tokens_at_once:
                yield batch
                batch = []
            batch.append(window)
        yield batch
