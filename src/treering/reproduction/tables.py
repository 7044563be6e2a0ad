"""What the reproduction found, as tables and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from treering.report.figures import COLOURS, blank
from treering.reproduction.claims import ALL, CONTINUATION, RECALL, Finding, Measured, Verdict
from treering.reproduction.reproduction import Reproduction
from treering.reproduction.rows import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS: dict[Verdict, tuple[str, str]] = {
    "holds": ("o", COLOURS[0]),
    "does not hold": ("s", COLOURS[1]),
    "not told apart": ("D", COLOURS[3]),
    "cannot be judged": ("x", COLOURS[5]),
}
"""How a verdict is drawn: by a mark and a colour, so that neither stands alone."""


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


def drawn(found: Reproduction) -> Figure:
    """Every contrast with its interval for each seed, by the verdict of its claim, whose number stands before it.

    The scale is linear to 2% and logarithmic beyond: some changes are fifty times others.
    """
    numbered = enumerate(found.findings, 1)
    lines = [(number, finding, one) for number, finding in numbered for one in finding.measured]
    figure = blank(10.5, 1.6 + 0.3 * len(lines))
    axes = figure.subplots()
    for at, (_, finding, measured) in enumerate(lines):
        _draw(axes, at, finding, measured)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=2, linscale=1.5)
    ticks = [-50, -20, -5, -2, -1, 0, 1, 2, 5, 20, 100]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks], fontsize=8)
    labels = [f"{contrast_in_words(measured)}  {number}" for number, _, measured in lines]
    axes.set_yticks(range(len(lines)), labels, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    figure.supxlabel(
        "change of bits per byte or mistakes, %: less is better; a line for each seed, 95% interval; dotted: no worse",
        fontsize=9,
    )
    axes.grid(alpha=0.25, linewidth=0.5, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    for verdict in dict.fromkeys(finding.verdict for _, finding, _ in lines):
        marker, colour = MARKS[verdict]
        axes.plot([], [], marker, color=colour, label=verdict)
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside upper right", title="the claim")
    return figure


def _draw(axes: Axes, at: int, finding: Finding, measured: Measured) -> None:
    marker, colour = MARKS[finding.verdict]
    margin = 100 * finding.claim.margin
    if margin:
        axes.plot([margin, margin], [at - 0.4, at + 0.4], color="#888888", linewidth=1.2, linestyle=":")
    many = len(measured.changes)
    for number, change in enumerate(measured.changes):
        height = at + (number - (many - 1) / 2) * 0.24
        spread = [[100 * (change.change - change.low)], [100 * (change.high - change.change)]]
        axes.errorbar(100 * change.change, height, xerr=spread, fmt=marker, color=colour, markersize=3.5, linewidth=1.1)
