"""A document longer than the context: what one window of it taught goes on into the next.

Windows overlap, so that every token has enough before it, and each token is foreseen in one of them. The experts read a
window as if it stood alone; what a rule knows of them is that of the document from its beginning. So what a rule
promises, it promises of the whole document: its bound (see ``posterior``) is of whatever sequence of probabilities the
experts gave, and asks nothing of where each of them looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from treering.composition.pools import log_likelihood
from treering.composition.rules import Joined, Reading, Rule


@dataclass(frozen=True)
class Learnt:
    """What a document has taught so far.

    Attributes:
        tokens: those that were read [position].
        evidence: for each rule, what `Joined.evidence` was after the last of them [row]; None for a rule without.
        foreseen: log-probability that each expert gave the token after them [expert], which nobody has read yet.
    """

    tokens: Tensor
    evidence: tuple[Tensor | None, ...]
    foreseen: Tensor


@dataclass(frozen=True)
class Onward:
    """What rules made of windows, each a stretch of one document.

    Attributes:
        joined: for each rule, what it says at every position.
        logits: the experts' there [expert, batch, position, vocab].
        targets: the token after each position [batch, position].
        tokens: of the documents from their beginning [batch, position of the document].
    """

    joined: list[Joined]
    logits: Tensor
    targets: Tensor
    tokens: Tensor

    def learnt(self, row: int, count: int) -> Learnt:
        """What the document in ``row`` has taught after ``count`` of these positions; the others are padding."""
        read, last = self.tokens.shape[1] - self.targets.shape[1] + count, count - 1
        evidence = (each.evidence for each in self.joined)
        return Learnt(
            self.tokens[row, :read].clone(),  # a view would keep all rows
            tuple(None if track is None else track[:, row, last].clone() for track in evidence),
            log_likelihood(self.logits[:, row, last], self.targets[row, last].expand(len(self.logits))),
        )


def join_onward(
    rules: Sequence[Rule],
    logits: Tensor,
    reading: Reading,
    targets: Tensor,
    before: Sequence[Learnt] = (),
    first: int = 0,
) -> Onward:
    """Join what the experts said of windows, going on from what the documents had taught before.

    Args:
        logits: of whole windows [expert, batch, position, vocab], with their ``reading``: see ``ComposedModel.read``.
        targets: the token after each position [batch, position].
        before: for each row what was learnt; nothing where the windows begin their documents.
        first: position of the token that is known to be the next one then; those before it are context only, and
            nothing is said of what follows them.
    """
    if before:
        logits, targets = logits[:, :, first:], targets[:, first:]
        reading = replace(since(first, reading, before), said=lambda part: logits[:, :, part])
    joined = []
    for place, rule in enumerate(rules):
        states = [state for learnt in before if (state := learnt.evidence[place]) is not None]
        joined.append(rule(logits, replace(reading, state=torch.stack(states, -1) if states else None)))
    assert reading.tokens is not None
    return Onward(joined, logits, targets, reading.tokens)


def since(first: int, reading: Reading, before: Sequence[Learnt]) -> Reading:
    """A reading without what is context only; its first token counts as it was foreseen in the window before."""
    assert reading.likelihood is not None and reading.tokens is not None
    foreseen = torch.stack([learnt.foreseen for learnt in before], -1).to(reading.likelihood)
    return replace(
        reading,
        likelihood=torch.cat([foreseen[..., None], reading.likelihood[..., first + 1 :]], -1),
        hidden=None if reading.hidden is None else reading.hidden[:, first:],
        tokens=torch.cat([torch.stack([learnt.tokens for learnt in before]), reading.tokens[:, first:]], -1),
    )
