"""What a composition can learn on a little text that no expert was trained on: weights, a gate, an adapter.

The experts stay as they are; their final states are computed once, and what is fitted is a thin layer on top of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.composition.model import ComposedModel
from treering.composition.onward import Learnt, since
from treering.composition.posterior import posterior
from treering.composition.rules import Reading, Rule
from treering.composition.specs import rule
from treering.corpus import Window, windows
from treering.errors import TreeringError
from treering.tokenizer import encode, separator
from treering.training.loss import log_likelihood, next_token_loss

SHARE = 0.01
"""Of the tokens that the experts were trained on: how many a fit reads at most, unless told otherwise."""

RIDGE = 0.01
"""Pull of a gate's hidden-state part back to its start, per squared unit (docs/rules.md says how it was chosen)."""

STEPS = 25
"""Of L-BFGS at most: more would fit the few tokens rather than the language."""

ADAPTER_RATE, ADAPTER_EPOCHS, BATCH = 3e-4, 20, 256
"""Of the adapter: Adam, passes over the text at most, and tokens in a step (docs/rules.md)."""

LOGITS_AT_ONCE = 2**24
"""Logits (tokens × vocabulary × experts) that exist at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Fit:
    """What a fit did: nats per token on its own text at the rule's start and after, and on how much of which text."""

    rule: str
    before: float
    after: float
    tokens: int
    texts: dict[str, int]


@dataclass(frozen=True)
class _Examples:
    """Every scored token of the texts as a text of its own, that the experts have read all before it of.

    reading: one position for each example, ``state`` and ``hidden`` being those of its place in its document.
    targets: the tokens that follow [example].
    said: the experts' log-probabilities of them [expert, example].
    """

    reading: Reading
    targets: Tensor
    said: Tensor

    def chunks(self, size: int) -> Iterator[_Examples]:
        """The examples a few at a time."""
        whole = self.reading
        assert whole.likelihood is not None and whole.state is not None
        for start in range(0, len(self.targets), size):
            part = slice(start, start + size)
            reading = replace(
                whole,
                likelihood=whole.likelihood[:, part],
                state=whole.state[:, part],
                hidden=None if whole.hidden is None else whole.hidden[part],
            )
            yield _Examples(reading, self.targets[part], self.said[:, part])


def fit(
    model: ComposedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    spec: str,
    tokens: int | None = None,
    console: Console | None = None,
) -> Fit:
    """Fit what the rule can learn, in place, and join by it from now on; what was fitted before is not begun with.

    - ``weighted``: the experts' weights, the same for every text, from equal ones; a convex problem in either pool,
      whose optimum does not depend on the start. They become the experts' prior.
    - ``gate``: from the evidence, by L-BFGS, with a ridge on what it takes from the hidden states.
    - ``adapter``: from the mean of logits, by Adam; its size is that of all heads together.

    Args:
        texts: documents by the text's name, taken in turn; none of them should be known to the experts.
        tokens: how many to read at most; by default `SHARE` of those that the experts were trained on, where their
            records say so, and otherwise all.

    Raises:
        TreeringError: the rule learns nothing, or there is no text.
    """
    chosen = rule(spec)
    if chosen.name not in _FITS:
        raise TreeringError(f"The rule {chosen.name} has nothing to fit. Those that have: {', '.join(_FITS)}.")
    model.use(spec)
    budget = tokens or _allowance(model)
    examples, counts = _read(model, tokenizer, texts, budget, chosen)
    before, after = _FITS[chosen.name](model, chosen, examples, console or Console(quiet=True))
    done = Fit(str(chosen), before, after, len(examples.targets), counts)
    model.config.fusion = (model.config.fusion or {}) | {
        chosen.name: {"rule": done.rule, "tokens": done.tokens, "texts": counts, "before": before, "after": after}
    }
    return done


def _allowance(model: ComposedModel) -> int | None:
    """`SHARE` of the tokens that the experts were trained on, or None if one's record does not say."""
    trained = [(record.get("training") or {}).get("measured", {}).get("tokens") for record in model.config.experts]
    return None if None in trained else math.floor(SHARE * sum(trained))


@torch.no_grad()
def _read(
    model: ComposedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    budget: int | None,
    chosen: Rule,
) -> tuple[_Examples, dict[str, int]]:
    """What the experts make of the texts, document by document from each text in turn, up to ``budget`` tokens."""
    counts, parts = dict.fromkeys(texts, 0), list[tuple[Tensor, ...]]()
    hidden = "hidden" in chosen.needs or chosen.parameters.get("pool") == "log"
    learnt: Learnt | None = None
    for name, window in _windows_in_turn(tokenizer, texts, context_length(model.config)):
        left = len(window.tokens) if budget is None else budget - sum(counts.values())
        if left <= 0:
            break
        ids = torch.tensor([window.tokens[: window.scored_from + left]], device=model.device)
        logits, reading = model.read(ids[:, :-1], hidden=hidden)
        first = window.scored_from - 1  # what stands before it is context only
        targets = ids[:, 1 + first :]
        state: Tensor | None = reading.prior
        if first and learnt is not None:
            reading, state = since(first, reading, [learnt]), learnt.evidence[0]
        assert reading.likelihood is not None and reading.tokens is not None and state is not None
        track = posterior(reading.likelihood, reading.prior, state[:, None], chosen.parameters.get("switch", 0.0))[:, 0]
        before = torch.cat([state[:, None], track[:, :-1]], -1)
        said = log_likelihood(logits[:, 0, first:], targets[0])
        learnt = Learnt(reading.tokens[0], (track[:, -1],), said[:, -1])
        final = ids.new_zeros((1, targets.shape[1], 0)) if reading.hidden is None else reading.hidden
        parts.append((reading.likelihood[:, 0], before, said, final[0].T, targets))
        counts[name] += ids.shape[1] - window.scored_from
    if not parts:
        raise TreeringError("There is no text to fit on.")
    likelihood, state, said, final, targets = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    reading = Reading(model.prior, likelihood[..., None], state, final.T[:, None] if hidden else None)
    return _Examples(reading, targets[0], said), counts


def _windows_in_turn(
    tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Sequence[str]], context: int
) -> Iterator[tuple[str, Window]]:
    """The first document of each text, then the second of each …, cut to the context."""
    for index in range(max((len(found) for found in texts.values()), default=0)):
        for name, found in texts.items():
            for window in windows(encode(tokenizer, found[index : index + 1]), separator(tokenizer), context):
                yield name, window


def _surprise(model: ComposedModel, chosen: Rule, examples: _Examples, reading: Reading) -> Tensor:
    """Nats of all examples together under the rule, with ``reading`` in place of the examples' own.

    A mixture of the experts' distributions over the tokens is, for any one token, the mixture of their distributions
    over that token and the rest: two numbers instead of a vocabulary.
    """
    if chosen.parameters.get("pool", "linear") == "linear":
        rest = (-examples.said.expm1()).clamp(min=torch.finfo(examples.said.dtype).tiny).log()
        logits, targets = torch.stack([examples.said, rest], -1)[:, :, None], torch.zeros_like(examples.targets)
    else:
        assert reading.hidden is not None
        logits, targets = model.expert_logits(reading.hidden), examples.targets
    return F.cross_entropy(chosen(logits, reading).logits[:, 0], targets, reduction="sum")


def _minimise(
    parameter: Tensor,
    loss: Callable[[_Examples], Tensor],
    pull: Callable[[], Tensor],
    examples: _Examples,
    size: int,
    console: Console,
) -> tuple[float, float]:
    """Nats per token before and after L-BFGS on the mean of ``loss`` over the examples plus ``pull``."""
    total, history = len(examples.targets), list[float]()
    optimiser = torch.optim.LBFGS([parameter], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        nats = 0.0
        for chunk in examples.chunks(size):
            part = loss(chunk) / total
            part.backward()
            nats += part.item()
        penalty = pull()
        if penalty.requires_grad:
            penalty.backward()
        history.append(nats)
        status.update(f"{len(history)} evaluations: {history[0]:.4f} → {nats:.4f} nats per token")
        return penalty.detach() + nats

    with console.status("fitting …") as status:
        optimiser.step(evaluate)
        first = history[0]
        evaluate()
    return first, history[-1]


def _fit_weights(model: ComposedModel, chosen: Rule, examples: _Examples, console: Console) -> tuple[float, float]:
    """Weights on the simplex, as a softmax: where it is stationary the convex problem is, and so at its optimum."""
    scores = torch.zeros_like(model.prior).requires_grad_()

    def loss(chunk: _Examples) -> Tensor:
        return _surprise(model, chosen, chunk, replace(chunk.reading, prior=scores.log_softmax(0)))

    measured = _minimise(scores, loss, lambda: scores.new_zeros(()), examples, _at_once(model), console)
    for record, weight in zip(model.config.experts, scores.detach().softmax(0).tolist(), strict=True):
        record["weight"] = weight
    return measured


def _fit_gate(model: ComposedModel, chosen: Rule, examples: _Examples, console: Console) -> tuple[float, float]:
    start, experts = model.fusion_start("gate"), len(model.config.experts)
    weight = start.clone().requires_grad_()

    def loss(chunk: _Examples) -> Tensor:
        return _surprise(model, chosen, chunk, replace(chunk.reading, fusion={"gate": weight}))

    def pull() -> Tensor:
        return RIDGE * (weight - start)[:, : -experts - 1].square().sum()

    measured = _minimise(weight, loss, pull, examples, _at_once(model), console)
    model.fusion["gate"].data = weight.detach()
    return measured


def _fit_adapter(model: ComposedModel, chosen: Rule, examples: _Examples, console: Console) -> tuple[float, float]:
    """Adam over the examples in random order, a fifth of them kept aside to stop where they no longer gain."""
    assert examples.reading.hidden is not None
    hidden, targets = examples.reading.hidden[:, 0], examples.targets
    weight = model.fusion_start("adapter").requires_grad_()
    aside = len(targets) - len(targets) // 5
    optimiser = torch.optim.Adam([weight], lr=ADAPTER_RATE)
    generator = torch.Generator().manual_seed(0)

    def nats(part: slice | Tensor) -> Tensor:
        return next_token_loss(hidden[part], weight, targets[part]) / len(targets[part])

    with torch.no_grad():
        before, best, kept = nats(slice(None)).item(), nats(slice(aside, None)).item(), weight.detach().clone()
    with console.status("fitting …") as status:
        for epoch in range(ADAPTER_EPOCHS):
            for batch in torch.randperm(aside, generator=generator).to(targets.device).split(BATCH):
                optimiser.zero_grad()
                nats(batch).backward()
                optimiser.step()
            with torch.no_grad():
                now = nats(slice(aside, None)).item()
            status.update(f"pass {epoch + 1}: {now:.4f} nats per token on what is kept aside")
            if now >= best:
                break
            best, kept = now, weight.detach().clone()
    model.fusion["adapter"].data = kept
    return before, (next_token_loss(hidden, kept, targets) / len(targets)).item()


def _at_once(model: ComposedModel) -> int:
    """Examples whose logits fit into memory together."""
    return max(1, LOGITS_AT_ONCE // (model.config.vocab_size * len(model.config.experts)))


_FITS: dict[str, Callable[[ComposedModel, Rule, _Examples, Console], tuple[float, float]]] = {
    "weighted": _fit_weights,
    "gate": _fit_gate,
    "adapter": _fit_adapter,
}
