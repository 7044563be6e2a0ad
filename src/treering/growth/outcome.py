"""What the rows of a study reached, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from treering.growth.cost import StageCost
from treering.training import Training


@dataclass(frozen=True)
class Outcome:
    """What the runs of one row reached, with the settings that were chosen for it.

    Attributes:
        active: parameters that train at once, at most.
        optimiser: MiB of Adam's state that must be on the device at once, at most; ``optimiser_host``: beside it in the
            host's memory, of what waits for its turn.
        bits_per_byte: on held-out documents, each as a whole; mean over the texts and seeds.
        low, high: of the seeds.
        texts: of each text, mean over the seeds.
        recovered: (shallow − it) / (shallow − monolithic), both on glyphs and the same tokens: 0 is the shallow model
            of the same active budget, 1 the monolithic one of full depth.
    """

    name: str
    learning_rate: float
    warmup: float
    schedule: str
    seeds: int
    active: int
    optimiser: float
    optimiser_host: float
    tokens: int
    flops: float
    seconds: float
    bits_per_byte: float
    low: float
    high: float
    texts: dict[str, float]
    recovered: float | None


def outcomes(
    rows: Mapping[str, tuple[Sequence[StageCost], Training]], measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Outcome]:
    """Compare the rows of a study.

    Args:
        rows: by name, what the stages cost and with which settings they trained.
        measured: by name, for each seed its ``abilities`` on the held-out pages and its ``seconds``.
    """
    texts = {name: [_bits(seed["abilities"]) for seed in seeds] for name, seeds in measured.items()}
    means = {name: [statistics.mean(found.values()) for found in seeds] for name, seeds in texts.items()}
    mean = {name: statistics.mean(found) for name, found in means.items()}
    shallow, whole = mean.get("shallow, glyph"), mean.get("monolithic, glyph")
    found = []
    for name, (costs, settings) in rows.items():
        recovered = None
        if shallow is not None and whole is not None and shallow != whole:
            recovered = round((shallow - mean[name]) / (shallow - whole), 3)
        found.append(
            Outcome(
                name=name,
                learning_rate=settings.learning_rate,
                warmup=settings.warmup,
                schedule=settings.schedule,
                seeds=len(means[name]),
                active=max(cost.active for cost in costs),
                optimiser=round(max(cost.optimiser for cost in costs), 2),
                optimiser_host=round(max(cost.optimiser_host for cost in costs), 2),
                tokens=sum(cost.tokens for cost in costs),
                flops=sum(cost.flops for cost in costs),
                seconds=round(statistics.mean(seed["seconds"] for seed in measured[name]), 1),
                bits_per_byte=round(mean[name], 4),
                low=round(min(means[name]), 4),
                high=round(max(means[name]), 4),
                texts={text: round(statistics.mean(seed[text] for seed in texts[name]), 4) for text in texts[name][0]},
                recovered=recovered,
            )
        )
    return found


def as_study_table(found: Sequence[Outcome]) -> Table:
    """The outcomes as people read them."""
    texts = list(found[0].texts)
    table = Table("bits per byte, by document", box=None)
    for column in ("rate", "warm-up", "schedule", "active", "Adam MiB", "M tokens", "TFLOPs", "seconds"):
        table.add_column(column, justify="right")
    for column in ("held out", *texts, "recovered"):
        table.add_column(column, justify="right")
    for one in found:
        spread = f" ({one.low:.3f}–{one.high:.3f})" if one.seeds > 1 else ""
        host = f" + {one.optimiser_host:.2f} host" if one.optimiser_host else ""
        table.add_row(
            one.name,
            f"{one.learning_rate:g}",
            f"{one.warmup:.0%}",
            one.schedule,
            f"{one.active:,}",
            f"{one.optimiser:.2f}{host}",
            f"{one.tokens / 1e6:.2f}",
            f"{one.flops / 1e12:.1f}",
            f"{one.seconds:,.0f}",
            f"{one.bits_per_byte:.4f}{spread}",
            *(f"{one.texts[text]:.3f}" for text in texts),
            "" if one.recovered is None else f"{one.recovered:+.2f}",
        )
    return table


def _bits(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bits per byte by text."""
    return {ability["text"]: ability["value"] for ability in found if ability["measure"] == "bits per byte"}
