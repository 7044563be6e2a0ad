"""Plots, and how they are embedded in a page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All as light as one another, so that each stands out from a white page, from a dark one, and from white letters on it.
COLOURS = ("#347c58", "#b3522c", "#486eb1", "#876b1e", "#9059a6", "#6f6f6f", "#217b7b", "#c33b6b", "#5b781e", "#96624f")
MARKERS, DASHES = "os^Dv*PX", ("-", "--", "-.", ":")
"""What tells lines apart where colours do not: in grey all colours are one."""
POINTS = 2000
"""Points of a training curve at most; of a longer one, every so many are drawn."""


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches; only who draws waits for matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], stages: Mapping[int, str] | None = None
) -> Figure:
    """Training loss (thin) and validation (marks) of each run in bits per byte, over millions of tokens.

    Of runs in stages, a dotted line marks where each stage begins, where a new block makes the loss jump.

    Args:
        histories: by run, what ``treering.training`` or ``treering.growth`` writes to ``history.json``.
        stages: by number, what a mark is called; "stage 2" if not given.
    """
    figure = blank(7.2, 3.6)
    axes = figure.subplots()
    marks: dict[float, str] = {}
    for at, (name, history) in enumerate(histories.items()):
        training = [entry for entry in history if "loss" in entry]
        validation = [entry for entry in history if "eval_loss" in entry]
        thinned = training[:: -(-len(training) // POINTS) or 1]
        axes.plot(*_curve(thinned, "bits_per_byte"), _way(at)[1:], color=_colour(at), alpha=0.5, linewidth=1)
        axes.plot(*_curve(validation, "eval_bits_per_byte"), _way(at), color=_colour(at), markersize=4.5, label=name)
        begins = [(a["tokens"] / 1e6, b["stage"]) for a, b in pairwise(training) if a.get("stage") != b.get("stage")]
        if begins:
            begins = [(0.0, training[0]["stage"]), *begins]
        marks |= {where: (stages or {}).get(stage, f"stage {stage}") for where, stage in begins}
    for where, label in marks.items():
        axes.axvline(where, color="black", linewidth=0.8, linestyle=":", alpha=0.7)
        axes.annotate(
            label, (where, 1), (3, -2), ("data", "axes fraction"), "offset points", rotation=90, va="top", fontsize=8
        )
    axes.set(xlabel="million tokens", ylabel="bits per byte", yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    _plain(axes)
    axes.legend(frameon=False, title="validation; thin: training")
    return figure


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _way(at: int) -> str:
    """Mark and dashes of a line."""
    return MARKERS[at % len(MARKERS)] + DASHES[(at + at // len(MARKERS)) % len(DASHES)]


def _plain(axes: Axes) -> None:
    """A pale grid, and no frame but the axes."""
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


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
        colour = _colour(models.index(r["model"]))
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
    axes.set_ylim(len(texts) * (len(models) + 1) - 1.4, -1.2)  # from below the last bar to above the first text's name
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
        axes.plot(range(len(line)), line, _way(at), color=_colour(at), markersize=4.5, label=name)
    axes.set(xlabel="tasks that have arrived", ylabel="bits per byte, mean over all tasks")
    axes.set_xticks(range(max(len(matrix) for runs in matrices.values() for matrix in runs.values())))
    _plain(axes)
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
            axes, at = panels[rules.index(rule)][across], numbers.index(members)
            if None in gains:
                line = axes.axhline(100 * gains[None], color=_colour(at), linestyle="--", linewidth=1.2)
            else:
                points = sorted((100 * at, 100 * gain) for at, gain in gains.items() if at is not None)
                (line,) = axes.plot(
                    *zip(*points, strict=True), f"{MARKERS[at % 8]}-", color=_colour(at), markersize=4.5
                )
            labelled.setdefault(f"{members} of each kind", line)
        panels[0][across].set_title(text, fontsize=9, fontweight="bold")
    for rule, row in zip(rules, panels, strict=True):
        row[0].set_ylabel(rule.replace(":", ":\n").replace(",", ",\n"), fontsize=8)
        for axes in row:
            axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
            axes.tick_params(labelsize=8)
            _plain(axes)
    figure.supxlabel("topics shared, % of the bytes", fontsize=9)
    figure.supylabel("fewer bits per byte than the best member, %", fontsize=9)
    figure.legend(
        labelled.values(), labelled, frameon=False, fontsize=8, ncols=len(labelled), loc="outside upper right"
    )
    return figure


def by_depth(found: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> Figure:
    """What a growing model can do after each stage: a panel for each measure, a line for each text, with intervals.

    Args:
        found: what ``treering.evaluation.abilities`` returns, ``model`` being the stage, counted from 0.
        stages: what each is called, in order.
    """
    measures = list(dict.fromkeys(ability["measure"] for ability in found))
    texts = list(dict.fromkeys(ability["text"] for ability in found))
    figure = blank(7.2, 3.2)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for at, text in enumerate(texts):
            own = [ability for ability in found if (ability["measure"], ability["text"]) == (measure, text)]
            scale = 1 if measure == "bits per byte" else 100
            values, lows, highs = ([scale * ability[key] for ability in own] for key in ("value", "low", "high"))
            # Beside one another, so that no interval hides another.
            places = [ability["model"] + 0.06 * (at - (len(texts) - 1) / 2) for ability in own]
            spread = [[max(v - low, 0) for v, low in zip(values, lows, strict=True)]]
            spread += [[max(high - v, 0) for v, high in zip(values, highs, strict=True)]]
            axes.errorbar(
                places, values, spread, fmt=_way(at), color=_colour(at), markersize=4.5, elinewidth=0.8, label=text
            )
        if measure != "bits per byte":
            axes.axhline(25, color="black", linewidth=0.8, linestyle=":")
            axes.annotate("chance", (1, 25), (0, 2), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
        axes.set_title(measure if measure == "bits per byte" else f"{measure}, % right", fontsize=9)
        axes.set_xticks(range(len(stages)), stages, fontsize=8, rotation=90 if len(stages) > 4 else 0)
        axes.tick_params(labelsize=8)
        _plain(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside upper right")
    return figure


def scatter(points: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Points of a plane [x, y] by what they belong to: a colour and a mark for each, the most numerous first."""
    figure = blank(7.2, 5.4)
    axes = figure.subplots()
    for at, (name, own) in enumerate(points.items()):
        x, y = zip(*own, strict=True)
        axes.scatter(
            x, y, 12, _colour(at), marker=MARKERS[at % 8], alpha=0.7, linewidths=0, label=f"{name} ({len(own):,})"
        )
    axes.set(xticks=[], yticks=[])  # what t-SNE's axes measure has no name
    axes.spines[:].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper", markerscale=1.8)
    return figure


def as_svg(figure: Figure, name: str, title: str, description: str = "") -> str:
    """The figure as an SVG element to stand inside a page, under a ``name`` of its own there.

    Its text stays text, and it has no ground and no ink of its own, so that both are the page's: what is black is drawn
    in the colour of the text around it.

    Args:
        title: what it shows, for those who do not see it; ``description``: what is to be seen there.
    """
    _as_written(figure)
    buffer = io.StringIO()
    from matplotlib import rc_context

    # The salt makes the same figure the same bytes, and keeps the marks of two figures in one page apart.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    # Groups are numbered anew in every figure: two in a page would have the same names, which nothing refers to.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    svg = re.sub(r"((?:fill|stroke): )#000000", r"\1currentColor", svg)
    told = f'<title id="{name}-title">{escape(title)}</title>'
    told += f'<desc id="{name}-desc">{escape(description)}</desc>' if description else ""
    names = f"{name}-title" + (f" {name}-desc" if description else "")
    head, _, rest = svg.partition(">")
    return f'{head} role="img" aria-labelledby="{names}" fill="currentColor">{told}{rest}'


def _as_written(figure: Figure) -> None:
    """Let a name with dollars in it be that name, and no formula, which may even be a wrong one."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def as_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as the content of a PNG file."""
    _as_written(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def as_png_url(figure: Figure, dpi: int = 144) -> str:
    """The figure as a ``data:`` URL, for pictures made of pixels."""
    return "data:image/png;base64," + base64.b64encode(as_png(figure, dpi)).decode("ascii")
