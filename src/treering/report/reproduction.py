"""The page and the figure of ``treering study reproduction``: every claim, what was measured for it, the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treering.report.figures import COLOURS, as_svg, blank
from treering.report.page import Cell, Drawing, Grid, Report, Section
from treering.report.takeaways import of_verdicts, tint
from treering.reproduction import Finding, Measured, Reproduction, Verdict
from treering.reproduction.claims import ALL, CONTINUATION, RECALL
from treering.reproduction.tables import bounds, contrast_in_words, mean_change

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


def reproduction_report(found: Reproduction, command: str) -> Report:
    """The page of ``treering study reproduction``."""
    claims: list[tuple[str, list[Cell | str]]] = []
    for number, finding in enumerate(found.findings, 1):
        words = f"{number}. {finding.claim.part}: {finding.claim.words}"
        verdict = Cell(finding.verdict, best=finding.verdict == "holds")
        source = Cell(finding.claim.source, prose=True)
        if not finding.measured:
            why = Cell(finding.claim.beyond or finding.claim.fact, prose=True)
            claims.append((words, ["", verdict, why, source]))
        for at, one in enumerate(finding.measured):
            compared = [_change(one), "" if at else verdict, Cell(contrast_in_words(one), prose=True)]
            claims.append((f"{number}, and" if at else words, [*compared, "" if at else source]))
    texts = [text for text in found.documents if text not in (ALL, RECALL, CONTINUATION)]
    reached = [
        (one.name, [_reached(one.values[text]) if text in one.values else "" for text in (ALL, *texts)])
        for one in found.reached
    ]
    return Report(
        "The papers' claims, tried",
        of_verdicts([finding.verdict for finding in found.findings]),
        [
            Section(
                "Claim by claim",
                [
                    Drawing(
                        as_svg(verdicts(found.findings), "verdicts", "Every comparison with its intervals"),
                        "A line for each seed with its 95% interval; dotted, how much worse counts as no worse.",
                    ),
                    Grid(
                        ["claim", "change", "verdict", "measured", "claimed by"],
                        claims,
                        "Change of bits per byte, or of mistakes: less is better. Mean of the seeds, below it from the "
                        "lowest bound of any seed's 95% interval to the highest.",
                    ),
                ],
            ),
            Section(
                "What was reached",
                [
                    Grid(
                        ["", f"{ALL} texts", *texts],
                        reached,
                        "Bits per byte of held-out documents: mean of the seeds, below it the lowest and the highest.",
                    )
                ],
            ),
        ],
        command=command,
    )


def _change(measured: Measured) -> Cell:
    """A change, marked where every seed's interval excludes none."""
    low, high = bounds(measured)
    sign = -1 if high < 0 else 1 if low > 0 else 0
    change = mean_change(measured)
    return Cell(f"{change:+.1%}", f"{low:+.1%} … {high:+.1%}", tint=tint(sign, change))


def _reached(values: Sequence[float]) -> Cell:
    spread = f"{min(values):.3f} … {max(values):.3f}" if len(values) > 1 else ""
    return Cell(f"{statistics.mean(values):.3f}", spread)


def verdicts(findings: Sequence[Finding]) -> Figure:
    """Every contrast with its interval for each seed, by the verdict of its claim, whose number stands before it.

    The scale is linear to 2% and logarithmic beyond: some changes are fifty times others.
    """
    numbered = enumerate(findings, 1)
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
