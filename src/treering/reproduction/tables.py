"""What the reproduction found, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from treering.reproduction.claims import ALL, CONTINUATION, RECALL, Finding, Measured
from treering.reproduction.reproduction import Reproduction
from treering.reproduction.rows import Cost


def as_cost_table(costs: Sequence[Cost], rates: int, seeds: int) -> Table:
    """What every row will cost: the fewest runs that its search and seeds need, and the FLOPs of one."""
    runs = rates + seeds - 1
    table = Table("row", box=None)
    for column in ("blocks", "parameters", "train at once", "M tokens", "TFLOPs a run", "runs at least", "in all"):
        table.add_column(column, justify="right")
    for cost in costs:
        depth = max(block for stage in cost.row.plan.stages for block in stage.new)
        table.add_row(
            cost.row.name,
            f"{depth}",
            f"{cost.total:,}",
            f"{cost.active:,}",
            f"{cost.row.tokens / 1e6:.2f}",
            f"{cost.flops / 1e12:.2f}",
            f"{runs}",
            f"{runs * cost.flops / 1e12:.1f}",
        )
    whole = sum(cost.flops for cost in costs) * runs / 1e12
    table.add_row("all", "", "", "", "", "", f"{runs * len(costs)}", f"{whole:.1f}")
    return table


def as_rows_table(found: Reproduction) -> Table:
    """What every row and composition reached, mean over the seeds, with the lowest and highest on all texts."""
    texts = [text for text in found.documents if text not in (ALL, RECALL, CONTINUATION)]
    asked = [text for text in (RECALL, CONTINUATION) if text in found.documents]
    table = Table("bits per byte, by document", box=None)
    for column in ("rate", "train at once", "M tokens", "TFLOPs", "seconds", "all texts", *texts):
        table.add_column(column, justify="right")
    for column in asked:
        table.add_column(f"{column}, right", justify="right")
    for one in found.reached:
        table.add_row(
            one.name,
            "" if one.rate is None else f"{one.rate:g}",
            "" if one.active is None else f"{one.active:,}",
            "" if one.tokens is None else f"{one.tokens / 1e6:.2f}",
            "" if one.flops is None else f"{one.flops / 1e12:.2f}",
            "" if one.seconds is None else f"{one.seconds:,.0f}",
            _ranged(one.values[ALL]),
            *(f"{statistics.mean(one.values[text]):.3f}" for text in texts),
            *(f"{1 - statistics.mean(one.values[text]):.1%}" if text in one.values else "" for text in asked),
        )
    return table


def _ranged(values: Sequence[float]) -> str:
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def as_claims_table(findings: Sequence[Finding]) -> Table:
    """A row for each claim and contrast: the change, the widest interval of all seeds, the verdict."""
    table = Table("", "claim", "claimed by", "measured", box=None)
    for column in ("change", "95% interval, all seeds", "verdict"):
        table.add_column(column, justify="right")
    for number, finding in enumerate(findings, 1):
        claim = finding.claim
        for at, part in enumerate(finding.measured or (None,)):
            table.add_row(
                "" if at else f"{number}",
                "" if at else f"{claim.part}: {claim.words}",
                "" if at else claim.source,
                claim.beyond or claim.fact if part is None else contrast_in_words(part),
                "" if part is None else f"{mean_change(part):+.1%}",
                "" if part is None else "{:+.1%} … {:+.1%}".format(*bounds(part)),
                "" if at else f"[bold]{finding.verdict}[/]",
            )
    return table


def contrast_in_words(measured: Measured) -> str:
    """What stood against what, on which text."""
    contrast = measured.contrast
    where = "mistakes in " if contrast.text in (RECALL, CONTINUATION) else "on "
    chance = "; at chance" if measured.at_chance else ""
    return f"{contrast.model} against {contrast.reference}, {where}{contrast.text}{chance}"


def mean_change(measured: Measured) -> float:
    """The mean of the seeds' changes."""
    return statistics.mean(change.change for change in measured.changes)


def bounds(measured: Measured) -> tuple[float, float]:
    """From the lowest bound of any seed to the highest."""
    return min(change.low for change in measured.changes), max(change.high for change in measured.changes)
