"""What was measured of the default plan's worth, told before it runs, and no more than that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treering.growth.cost import StageCost


@dataclass(frozen=True)
class Measured:
    """A study of `copied` against its baselines, each row at its own best rate.

    Attributes:
        tokens: for each parameter that trains in the whole model.
        shallow: bits per byte against two blocks trained all along, the same number at once: a change, as a share.
        whole: against all blocks at once.
    """

    tokens: int
    shallow: float
    whole: float


COPIED = (Measured(5, +0.094, +0.087), Measured(28, -0.022, +0.053))
"""Width 32, six blocks, Russian and English (docs/results.md), the fewest tokens first."""


def worth_of_copied(costs: Sequence[StageCost]) -> str:
    """How many tokens a plan of `copied` reads for each parameter, and what was measured of such plans.

    Args:
        costs: of its stages.
    """
    parameters = costs[-1].trained
    tokens = sum(cost.tokens for cost in costs) / parameters
    measured = "; ".join(
        f"at {one.tokens} it was {_against(one.shallow)} two blocks trained all along and {_against(one.whole)} all "
        "blocks at once"
        for one in COPIED
    )
    return (
        f"{tokens:,.1f} tokens for each of {parameters:,} parameters. Measured of copied (docs/results.md, one shape): "
        f"{measured}. Nothing between was: with fewer than {COPIED[-1].tokens}, try --plan shallow-2 beside it."
    )


def _against(change: float) -> str:
    return f"{abs(change):.1%} {'better' if change < 0 else 'worse'} than"
