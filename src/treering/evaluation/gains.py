"""What a study of compositions found: gains over members, over one model on all texts, and what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from treering.evaluation.bits import Change, DocumentLosses, paired_change
from treering.evaluation.costs import Costs

OWN, EVERY = "best member", "every member"
"""What a composition is compared with: the best of the text's own members, and each of them, the least gain of all."""

COSTS = ("parameters", "ms/token", "MiB")
"""What costs are called in tables, in the order of `costs_cells`."""


@dataclass(frozen=True)
class Against:
    """A composition beside another model, seed by seed: the other's bits per byte, and the change from it."""

    bits_per_byte: tuple[float, ...]
    changes: tuple[Change, ...]

    @property
    def change(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(change.change for change in self.changes)

    @property
    def significant(self) -> bool:
        """Whether every seed's interval excludes no change, on the same side."""
        return all(change.high < 0 for change in self.changes) or all(change.low > 0 for change in self.changes)


@dataclass(frozen=True)
class Outcome:
    """What one composition reached on one text by one rule.

    Attributes:
        members: of each kind.
        overlap: share of the texts' topics that the members of a kind should share; of one member, none.
        shared: the share that they do share, as topics are whole.
        bits_per_byte: by seed.
        against: by `OWN`, `EVERY` and yardstick. A text that is no member's own is compared with all members.
        costs: of decoding with the composition by this rule.
    """

    text: str
    rule: str
    members: int
    overlap: float | None
    shared: float | None
    documents: int
    bits_per_byte: tuple[float, ...]
    against: dict[str, Against]
    costs: Costs


@dataclass(frozen=True)
class Yardstick:
    """One model on all texts; ``members`` says beside which compositions it stands (None: all)."""

    name: str
    members: int | None
    layers: int
    costs: Costs
    bits_per_byte: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Gains:
    """All outcomes, the yardsticks, and the learning rates that were chosen, by what they train."""

    outcomes: list[Outcome]
    yardsticks: list[Yardstick]
    rates: dict[str, float]


def compared(
    joined: Sequence[DocumentLosses],
    members: Sequence[Sequence[DocumentLosses]],
    yardsticks: Mapping[str, Sequence[DocumentLosses]],
) -> dict[str, Against]:
    """A composition against the text's own members and the yardsticks, on the same documents.

    Args:
        joined: of each seed, the composition's losses.
        members: of each seed, those of the text's own members.
        yardsticks: by name, of each seed.
    """
    best = [min(own, key=lambda losses: losses.nats.sum()) for own in members]
    least = [
        max(((paired_change(whole, one), one) for one in own), key=lambda found: found[0].high)
        for whole, own in zip(joined, members, strict=True)
    ]
    found = {
        OWN: against(joined, best),
        EVERY: Against(tuple(one.bits_per_byte for _, one in least), tuple(change for change, _ in least)),
    }
    return found | {name: against(joined, losses) for name, losses in yardsticks.items()}


def against(joined: Iterable[DocumentLosses], others: Sequence[DocumentLosses]) -> Against:
    """A composition beside another model, of each seed."""
    changes = tuple(paired_change(whole, other) for whole, other in zip(joined, others, strict=True))
    return Against(tuple(other.bits_per_byte for other in others), changes)


def as_gains_table(found: Gains) -> Table:
    """A row for each text, rule and composition: bits per byte beside those of others and the change from them.

    All are means over seeds; bold where every seed's interval excludes no change.
    """
    others = list(dict.fromkeys(name for outcome in found.outcomes for name in outcome.against if name != EVERY))
    table = Table("text", "rule", box=None)
    for column in ("members", "shared", "bits/byte", *others, *COSTS):
        table.add_column(column, justify="right")
    for one in found.outcomes:
        table.add_row(
            one.text,
            one.rule,
            f"{one.members}",
            "" if one.overlap is None else f"{one.overlap:.0%}",
            f"{statistics.mean(one.bits_per_byte):.3f}",
            *(_cell(one.against[name]) for name in others),
            *costs_cells(one.costs),
        )
    return table


def costs_cells(costs: Costs) -> list[str]:
    """What stands under `COSTS`."""
    return [f"{costs.parameters:,}", f"{costs.milliseconds:.1f}", f"{costs.mebibytes:.1f}"]


def _cell(other: Against) -> str:
    text = f"{other.change:+.1%}"
    return f"{statistics.mean(other.bits_per_byte):.3f} " + (f"[bold]{text}[/]" if other.significant else text)


def lines(found: Gains) -> dict[str, dict[tuple[str, int], dict[float | None, float]]]:
    """By text, by rule and members, the gain over the text's best member at each overlap (0.01: 1% fewer bits)."""
    drawn: dict[str, dict[tuple[str, int], dict[float | None, float]]] = {}
    for one in found.outcomes:
        line = drawn.setdefault(one.text, {}).setdefault((one.rule, one.members), {})
        line[one.overlap] = -one.against[OWN].change
    return drawn
