"""Rules that join experts at their output: pure functions on logits, registered by name (paper section 4)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from treering.errors import TreeringError

Rule = Callable[[Tensor], Tensor]
"""Experts' logits [expert, batch, position, vocab] to the composition's logits [batch, position, vocab]."""

RULES: dict[str, Rule] = {}


def register(rule: Rule) -> Rule:
    """Make a rule known under its function's name."""
    RULES[rule.__name__] = rule
    return rule


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        TreeringError: there is none; the message lists all.
    """
    if name not in RULES:
        raise TreeringError(f"There is no composition rule {name!r}. There are: {', '.join(RULES)}.")
    return RULES[name]


@register
def mean(logits: Tensor) -> Tensor:
    """The paper's rule (section 4): ``logits = mean_i logits_i``.

    As distributions, the normalised geometric mean of the experts' (a product of experts, Hinton 2002): no parameters,
    any number of experts, but one that knows nothing of a text drags the others down.
    """
    return logits.mean(0)
