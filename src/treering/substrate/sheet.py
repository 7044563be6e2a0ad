"""A picture of the substrate: how tokens are drawn, and what principal component analysis keeps of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.substrate.eigen import GRID
from treering.substrate.glyphs import cell_size, draw, token_texts
from treering.substrate.projection import pca_basis
from treering.substrate.substrate import Substrate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCRIPTS = (  # first and last letters of a few scripts, and how many tokens of each a sheet shows by itself
    ("A", "z", 5),
    ("А", "я", 5),
    ("一", "鿿", 5),
    ("α", "ω", 1),
    ("א", "ת", 1),
    ("ب", "ي", 1),
    ("क", "ह", 1),
    ("あ", "ん", 1),
    ("가", "힣", 1),
)
GOLDEN = 0.618  # spreads picks evenly over a list, however many there are
KEPT = (8, 32, 128)  # components, before all of them
INK, FADED, ACCENT = "#1c2733", "#7a8793", "#b5541c"


def draw_sheet(
    tokenizer: PreTrainedTokenizerFast, substrate: Substrate | int, tokens: Sequence[int] | None = None
) -> Figure:
    """Draw sample tokens' glyph cells, their reconstructions from ever more components, and the variance.

    Args:
        substrate: a glyph substrate of this tokenizer, or a d_model to look at before building one.
        tokens: the IDs to show; by default some two dozen long and short ones of the scripts that the
            vocabulary has.

    Raises:
        TreeringError: the substrate has no glyphs, they are all alike, or an ID is not in the vocabulary.
    """
    from matplotlib.figure import Figure

    texts = token_texts(tokenizer)
    d_model, cell = _size(substrate)
    chosen = list(tokens) if tokens is not None else sample_tokens(texts)
    if not chosen or not all(0 <= index < len(texts) for index in chosen):
        raise TreeringError(f"A sheet needs token IDs from 0 to {len(texts) - 1}, not {chosen}.")
    cells = draw(texts, cell)
    weights, basis = pca_basis(cells, d_model)
    if basis.rank == 0:
        raise TreeringError("All tokens of this vocabulary draw alike; there are no components to show.")
    directions = np.ldexp(weights.astype(np.float64), -GRID)  # [pixel, component]
    mean = cells.mean(axis=0, dtype=np.float64)
    features = (cells[chosen] - mean) @ directions  # [sample, component]
    steps = [k for k in KEPT if k < min(d_model, basis.rank)] + [min(d_model, basis.rank)]
    pictures = [cells[chosen].astype(np.float64)]
    pictures += [mean + features[:, :k] @ directions[:, :k].T for k in steps]

    columns = min(12, len(chosen))
    bands = -(-len(chosen) // columns)
    height = bands * (len(pictures) * 0.86 + 0.45) + 3.7  # inches; the rest of the page is laid out in inches too
    figure = Figure(figsize=(12.5, height), facecolor="white")
    line = 1 - 0.35 / height
    figure.text(0.03, line, "What a frozen glyph substrate sees", fontsize=17, color=INK, va="center")
    size = f"{len(texts):,} tokens · {cell} × {cell} pixels · d_model {d_model:,}"
    figure.text(0.97, line, size, fontsize=11, color=FADED, va="center", ha="right")
    labels = ["glyph cell", *(f"{k:,} components" for k in steps)]
    outer = figure.add_gridspec(bands, 1, left=0.115, right=0.97, top=1 - 0.75 / height, bottom=2.75 / height)
    for band in range(bands):
        part = range(band * columns, min((band + 1) * columns, len(chosen)))
        grid = outer[band].subgridspec(len(pictures), columns, hspace=0.08, wspace=0.08)
        for step, picture in enumerate(pictures):
            for place, sample in enumerate(part):
                axes = figure.add_subplot(grid[step, place])
                _cell(axes, picture[sample].reshape(cell, cell))
                if step == 0:
                    axes.set_title(f"token {chosen[sample]}", fontsize=7.5, color=FADED, pad=3)
                if place == 0:
                    axes.set_ylabel(
                        labels[step], rotation=0, ha="right", va="center", fontsize=9, color=INK, labelpad=8
                    )
    share = np.cumsum(basis.values[: min(d_model, basis.rank)]) / max(basis.values.sum(), 1.0)
    curve = figure.add_axes((0.115, 0.62 / height, 0.855, 1.6 / height))
    _curve(curve, share, steps)
    return figure


def sample_tokens(texts: Sequence[str], count: int = 24) -> list[int]:
    """Token IDs of some two dozen texts that look different, of several scripts, short and long."""
    chosen: list[int] = []
    for number, (first, last, share) in enumerate(SCRIPTS):
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, text in enumerate(texts):
            letters = text.strip(" ")
            if 0 < len(letters) <= 6 and all(first <= letter <= last and letter.isalpha() for letter in letters):
                by_length[len(letters)].append(index)
        lengths = sorted(by_length)
        for turn in range(share if lengths else 0):
            group = by_length[lengths[turn % len(lengths)]]
            index = group[int(len(group) * ((turn + 1) * GOLDEN + number * 0.37) % len(group))]
            if index not in chosen:
                chosen.append(index)
    rest = sorted(set(range(len(texts))) - set(chosen), key=lambda index: (not texts[index].strip(), index))
    rest = [index for index in rest if texts[index].isprintable()] or rest
    gap = max(1, len(rest) // max(1, count - len(chosen)))
    return (chosen + rest[gap // 2 :: gap])[:count]


def _size(substrate: Substrate | int) -> tuple[int, int]:
    """d_model and cell of what is to be drawn."""
    if isinstance(substrate, int):
        if substrate < 1:
            raise TreeringError(f"d_model must be at least 1, not {substrate}.")
        return substrate, cell_size(substrate)
    if substrate.recipe.cell is None:
        raise TreeringError(f"A substrate of kind {substrate.recipe.kind} has no glyphs to draw.")
    return substrate.recipe.d_model, substrate.recipe.cell


def _cell(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(1 - picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#cfd6dc")
        spine.set_linewidth(0.6)


def _curve(axes: Axes, share: np.ndarray, steps: Sequence[int]) -> None:
    components = np.arange(1, len(share) + 1)
    axes.fill_between(components, 0, share, color=ACCENT, alpha=0.12, linewidth=0)
    axes.plot(components, share, color=ACCENT, linewidth=1.8)
    for k in steps:
        axes.plot([k], [share[k - 1]], "o", color=ACCENT, markersize=4.5)
        axes.annotate(
            f"{share[k - 1]:.1%}",
            (k, share[k - 1]),
            xytext=(0, -13),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            ha="center",
        )
    axes.set_xscale("log", base=2)
    ticks = [2**i for i in range(len(share).bit_length()) if 2**i <= len(share)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.06)
    axes.set_xlim(1, max(len(share), 2) * 1.15)
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    axes.set_xlabel("components kept", fontsize=9, color=INK)
    axes.set_title("Share of the cells' variance", fontsize=10, color=INK, loc="left")
    axes.tick_params(labelsize=8.5, colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e6eaed", linewidth=0.8)
    axes.set_axisbelow(True)
