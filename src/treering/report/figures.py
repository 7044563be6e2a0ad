"""Plots, and how they are embedded in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f6f4f", "#b5532d", "#3b5b92", "#8a6d1f", "#7a4b8c", "#4d4d4d", "#2a9d9d", "#c43b6b", "#6b8e23", "#a0a0a0")


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches; only who draws waits for matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training loss (thin) and validation (points) of each run in bits per byte, over millions of tokens.

    Of runs in stages, a dotted line marks where each stage begins, where a new block makes the loss jump.

    Args:
        histories: by run, what ``treering.training`` or ``treering.growth`` writes to ``history.json``.
    """
    figure = blank(7.2, 3.6)
    axes = figure.subplots()
    for colour, (name, history) in zip(COLOURS, histories.items(), strict=False):
        training = [entry for entry in history if "loss" in entry]
        validation = [entry for entry in history if "eval_loss" in entry]
        axes.plot(*_curve(training, "bits_per_byte"), color=colour, alpha=0.35, linewidth=1)
        axes.plot(*_curve(validation, "eval_bits_per_byte"), "o-", color=colour, markersize=4, label=name)
        for before, after in pairwise(training):
            if before.get("stage") != after.get("stage"):
                axes.axvline(before["tokens"] / 1e6, color=colour, linewidth=0.8, linestyle=":", alpha=0.7)
    axes.set(xlabel="million tokens", ylabel="bits per byte", yscale="log")
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.yaxis.set_minor_formatter("{x:.1f}")
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="validation; thin: training")
    return figure


def _curve(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [entry["tokens"] / 1e6 for entry in entries], [entry[key] for entry in entries]


def scores(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits per byte by text as horizontal bars with their intervals: a group for each text, a bar for each model."""
    texts = list(dict.fromkeys(r["text"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    figure = blank(7.2, 0.6 + 0.32 * len(texts) * (len(models) + 1))
    axes = figure.subplots()
    for r in rows:
        at = texts.index(r["text"]) * (len(models) + 1) + models.index(r["model"])
        spread = [[r["bits_per_byte"] - r["low"]], [r["high"] - r["bits_per_byte"]]]
        colour = COLOURS[models.index(r["model"]) % len(COLOURS)]
        axes.barh(at, r["bits_per_byte"], xerr=spread, color=colour, height=0.8, error_kw={"linewidth": 1})
        # At the bar's foot, where no interval's line can be read as a minus.
        axes.annotate(
            f"{r['bits_per_byte']:.2f}",
            (0, at),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="white",
        )
    ticks = [(t * (len(models) + 1) + m, model) for t in range(len(texts)) for m, model in enumerate(models)]
    axes.set_yticks([at for at, _ in ticks], [f"{model}" for _, model in ticks], fontsize=8)
    for t, text in enumerate(texts):
        axes.text(0, t * (len(models) + 1) - 0.85, f"on {text}", fontweight="bold", fontsize=9, va="center")
    axes.invert_yaxis()
    axes.set(xlabel="bits per byte (less is better; line: 95% interval over documents)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def arrivals(matrices: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Figure:
    """The average over all tasks in bits per byte before the first and after each arrival: a line for each method.

    Args:
        matrices: by method and run, bits per byte [arrival][task]; the runs' mean is drawn.
    """
    figure = blank(7.2, 4.2)
    axes = figure.subplots()
    for at, (name, runs) in enumerate(matrices.items()):
        averages = [[sum(row.values()) / len(row) for row in matrix] for matrix in runs.values()]
        line = [sum(points) / len(points) for points in zip(*averages, strict=True)]
        dashed = "--" if at >= len(COLOURS) // 2 else "-"
        axes.plot(range(len(line)), line, f"o{dashed}", color=COLOURS[at % len(COLOURS)], markersize=3.5, label=name)
    axes.set(xlabel="tasks that have arrived", ylabel="bits per byte, mean over all tasks")
    axes.set_xticks(range(max(len(matrix) for runs in matrices.values() for matrix in runs.values())))
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def overlaps(texts: Mapping[str, Mapping[tuple[str, int], Mapping[float | None, float]]]) -> Figure:
    """Gain over the best member against overlap, a line for each number of members: texts across, rules down.

    Each rule has a scale of its own: some lose by far more than others gain.

    Args:
        texts: by text, by rule and members of a kind, the gain at each overlap (0.01: one percent fewer bits per byte);
            a single member has no overlap, and is drawn as a level.
    """
    rules = list(dict.fromkeys(rule for lines in texts.values() for rule, _ in lines))
    figure = blank(0.8 + 2.1 * len(texts), 1.0 + 1.9 * len(rules))
    panels = figure.subplots(len(rules), len(texts), squeeze=False, sharex=True, sharey="row")
    labelled: dict[str, Any] = {}
    for across, (text, lines) in enumerate(texts.items()):
        numbers = list(dict.fromkeys(members for _, members in lines))
        for (rule, members), gains in lines.items():
            axes, colour = panels[rules.index(rule)][across], COLOURS[numbers.index(members) % len(COLOURS)]
            if None in gains:
                line = axes.axhline(100 * gains[None], color=colour, linestyle="--", linewidth=1.2)
            else:
                points = sorted((100 * at, 100 * gain) for at, gain in gains.items() if at is not None)
                (line,) = axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5, linewidth=1.2)
            labelled.setdefault(f"{members} of each kind", line)
        panels[0][across].set_title(text, fontsize=9, fontweight="bold")
    for rule, row in zip(rules, panels, strict=True):
        row[0].set_ylabel(rule, fontsize=9)
        for axes in row:
            axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
            axes.grid(alpha=0.25, linewidth=0.5)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("topics shared, % of the bytes", fontsize=9)
    figure.supylabel("fewer bits per byte than the best member, %", fontsize=9)
    figure.legend(
        labelled.values(), labelled, frameon=False, fontsize=8, ncols=len(labelled), loc="outside upper right"
    )
    return figure


def heat_map(models: Sequence[str], subjects: Sequence[str], cells: Sequence[Sequence[tuple[float, float]]]) -> Figure:
    """Models down, subjects across, as the paper prints its results; each value stands in its cell.

    Args:
        cells: [model][subject], the value that is written and how good it is among its subject's, from 0 to 1.
    """
    figure = blank(2.2 + 1.05 * len(subjects), 1.4 + 0.42 * len(models))
    axes = figure.subplots()
    axes.imshow([[good for _, good in row] for row in cells], cmap="YlGn", vmin=0, vmax=1.25, aspect="auto")
    for down, row in enumerate(cells):
        for across, (value, good) in enumerate(row):
            axes.text(
                across,
                down,
                f"{value:.3f}",
                ha="center",
                va="center",
                color="white" if good > 0.6 else "#111111",
                weight="bold" if good == 1 else "normal",
            )
    axes.set_xticks(range(len(subjects)), subjects, rotation=25, ha="right")
    axes.set_yticks(range(len(models)), models)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to stand inside a page, under a ``name`` of its own there.

    Its text stays text, and it has no ground, so that the page gives it its own colours (``base.html.jinja``).
    """
    buffer = io.StringIO()
    from matplotlib import rc_context

    # The salt makes the same figure the same bytes, and keeps the marks of two figures in one page apart.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def as_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def as_png_url(figure: Figure, dpi: int = 144) -> str:
    """The figure as a ``data:`` URL, for pictures made of pixels."""
    return "data:image/png;base64," + base64.b64encode(as_png(figure, dpi)).decode("ascii")
