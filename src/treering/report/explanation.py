"""A page that shows which expert knew which word of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING, Any

from treering.reading import printable, visible
from treering.report.figures import as_svg, blank
from treering.report.page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treering.evaluation import Attribution

Colour = tuple[float, float, float]

# Okabe & Ito 2008, in an order of our own: most colour-blind readers tell them apart too.
OKABE_ITO = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
LINES = [
    f"{line} {way}" for line in ("underline", "overline") for way in ("solid", "dashed", "dotted", "double", "wavy")
]
"""Beside colour, by which each expert is known: in grey, colours are one."""
HATCHES = ("//", "..", "\\\\", "xx", "--", "oo")
SURE = 0.3
"""How far the credit of the one who knew a passage must be from equal shares (0) to all (1)."""
LONGEST = 20
"""Characters of a name beside a word: more would not fit on a phone."""
POINTS = 1000
"""Points of a curve at most; a longer text is averaged."""


def colours(experts: int) -> list[Colour]:
    """A colour for each expert, red, green and blue from 0 to 1."""
    if experts <= len(OKABE_ITO):
        return [_rgb([int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for name in OKABE_ITO[:experts]]
    hues = [expert / experts for expert in range(experts)]
    return [hsv_to_rgb(hue, 0.85, 0.75 if index % 2 else 0.95) for index, hue in enumerate(hues)]


def shade(credit: Sequence[float], palette: Sequence[Colour]) -> tuple[Colour, float]:
    """The experts' colours mixed by credit [expert], and how sure it is: 0 where all are equal, 1 where one has all."""
    mixed = [sum(c * colour[channel] for c, colour in zip(credit, palette, strict=True)) for channel in range(3)]
    return _rgb(mixed), certainty(credit)


def certainty(credit: Sequence[float]) -> float:
    """0 where all experts have the same credit, 1 where one has all."""
    equal = 1 / len(credit)
    return 1.0 if len(credit) == 1 else min(1.0, max(0.0, (max(credit) - equal) / (1 - equal)))


def leader(credit: Sequence[float]) -> int | None:
    """The expert with most of the credit [expert], if that is well above an equal share."""
    return list(credit).index(max(credit)) if certainty(credit) >= SURE else None


def weights_along(experts: Sequence[str], weights: Sequence[Sequence[float]]) -> Figure:
    """The experts' weights [expert, token] along the text as areas, one on the other."""
    figure = blank(9.6, 2.4)
    axes = figure.subplots()
    width = math.ceil(len(weights[0]) / POINTS)
    starts = range(0, len(weights[0]), width)
    means = [[sum(part := of[start : start + width]) / len(part) for start in starts] for of in weights]
    # The last value stands twice, so that its step has a right end.
    steps = [*starts, len(weights[0])], [[*of, of[-1]] for of in means]
    areas = axes.stackplot(*steps, labels=experts, colors=colours(len(experts)), step="post", linewidth=0)
    for at, area in enumerate(areas):
        area.set_hatch(HATCHES[at % len(HATCHES)])
        area.set_edgecolor("black")
    axes.set(xlim=(0, len(weights[0])), ylim=(0, 1), xlabel="tokens", ylabel="weight")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=min(len(experts), 6), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def explanation(attribution: Attribution, command: str) -> str:
    """The page of an attribution, with the ``command`` that makes it."""
    return render(
        "explain",
        **painted(attribution),
        rule=attribution.rule,
        tokens=len(attribution.spans),
        bytes=len(attribution.text.encode()),
        bits_per_byte=attribution.bits_per_byte,
        figure=as_svg(
            weights_along(attribution.experts, attribution.weights.exp().tolist()),
            "weights",
            "Each expert's weight along the text",
            "Areas, one on the other, in the experts' colours and patterns.",
        ),
        command=visible(command),
    )


def painted(attribution: Attribution) -> dict[str, list[dict[str, Any]]]:
    """The text in ``pieces`` with their looks and what is known of them, and the ``experts`` with theirs."""
    pieces, palette = attribution.pieces(), colours(len(attribution.experts))
    return {
        "pieces": [
            {
                "start": row["start"],
                "text": visible(row["text"]),
                "colour": _translucent(*shade(credit, palette)),
                "line": "" if (best := leader(credit)) is None else LINES[best % len(LINES)],
                "tip": tip(row),
            }
            for row, credit in zip(pieces.rows(), pieces.credit.T.tolist(), strict=True)
        ],
        "experts": [
            {**share, "colour": _hex(colour), "line": LINES[at % len(LINES)]}
            for at, (share, colour) in enumerate(zip(attribution.shares(), palette, strict=True))
        ],
    }


def tip(row: dict[str, Any]) -> str:
    """What is known of one piece (a row of ``Attribution.rows``) as lines of fixed width."""
    names = {name: printable(name, LONGEST) for name in row["experts"]}
    width = max(map(len, [*names.values(), "together"]))
    lines = [f"“{visible(row['text']).translate({9: '⇥', 10: '↵'})}”", f"{'':{width}}  weight    bits  credit"]
    for name, of in row["experts"].items():
        lines.append(f"{names[name]:{width}}  {of['weight']:6.1%}  {of['bits']:6.2f}  {of['credit']:6.1%}")
    return "\n".join([*lines, f"{'together':{width}}          {row['bits']:6.2f}"])


def _translucent(colour: Colour, sure: float) -> str:
    return _hex((*colour, 0.08 + 0.42 * sure))


def _hex(channels: Sequence[float]) -> str:
    """Channels from 0 to 1 as a page writes them."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def _rgb(channels: Sequence[float]) -> Colour:
    red, green, blue = (min(1.0, max(0.0, float(channel))) for channel in channels)
    return red, green, blue
