"""A run that has left the numbers: nothing of it is kept, and people are told where it happened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from treering.errors import TreeringError
from treering.reading import printable
from treering.training.order import Text, blocks_per_step
from treering.training.settings import Training

SHOWN, WORDS = 8, 48
"""Blocks of a step that are named with their beginning, and the characters of it."""


class Diverged(Exception):
    """The loss, a gradient or a weight is no longer finite.

    Args:
        what: it is, in words.
        step: of the optimiser, from 1, in which that was found.
    """

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} at step {step}")
        self.what, self.step = what, step


class Divergence(TreeringError):
    """What people are told of a run that diverged; it would do so again."""


def not_finite(parameters: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a parameter that holds a NaN or an infinity; None if there is none."""
    return next((name for name, parameter in parameters if not torch.isfinite(parameter).all()), None)


def explain(found: Diverged, text: Text, settings: Training, unfinished: Path, last: Path | None) -> Divergence:
    """What happened, at which text, and what to do.

    Args:
        last: the checkpoint that a run would go on from.
    """
    size = blocks_per_step(settings, text.block_size)
    rows = [int(row) for row in text.train.rows[(found.step - 1) * size : found.step * size]]
    lines = [f"Training diverged: {found.what} at step {found.step:,}. Nothing was exported."]
    if rows:
        lines.append(f"The step read the blocks {', '.join(map(str, rows))} of the corpus (rows of its train.arrow):")
        for row in rows[:SHOWN]:
            ids = text.train.blocks[row]["input_ids"]
            lines.append(f"  {row}: {printable(str(text.tokenizer.decode(ids[:WORDS])), WORDS)}")
        lines += ["  …"] * (len(rows) > SHOWN)
    kept = (
        f"The last good checkpoint ({last}) is kept; the same recipe would go on from it and diverge again"
        if last
        else f"There was no checkpoint yet; {unfinished} holds nothing to go on from"
    )
    lines.append(
        f"{kept}. Lower training.learning_rate ({settings.learning_rate:g}), lengthen training.warmup "
        f"({settings.warmup:g}) or tighten training.gradient_clip ({settings.gradient_clip:g}; 0 is none), or mend the "
        "data if that text is no text; then choose another output, or delete the unfinished run and begin anew."
    )
    return Divergence("\n".join(lines))
