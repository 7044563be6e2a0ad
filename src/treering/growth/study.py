"""The controlled study (paper section 5): growth against monolithic and shallow training, on three kinds of embedding.

Every run reads the same text in the same order and is measured alike; each is a growth plan of its own.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import gpt_neox
from treering.errors import TreeringError
from treering.growth import plans
from treering.growth.cost import ADAM, Shape, count, shape_of
from treering.growth.plan import Plan, steps
from treering.growth.prefix import Prefix
from treering.growth.recipe import GrowthRecipe, PlanField, as_plan, grow_recipe
from treering.output import staged_directory
from treering.recipe import Schema
from treering.substrate.substrate import Kind
from treering.tokenizer import load as load_tokenizer
from treering.training import Backbone, Training

KINDS: tuple[Kind, ...] = ("glyph", "code", "trainable")


class StudyRecipe(Schema):
    """What ``treering study growth`` reads."""

    tokenizer: str = Field(description="directory of the tokenizer; the substrates are made by the study")
    data: str = Field(description="directory of the prepared corpus")
    output: str = Field(description="directory of the study: runs that are there are not made again")
    backbone: Backbone = Backbone()
    plan: PlanField = Field(description="the growth that is studied")
    more: dict[str, PlanField] = Field({}, description="by name, other plans to compare, on glyphs")
    kinds: tuple[Kind, ...] = Field(KINDS, description="embeddings: glyph, code (16-bit), random, trainable")
    training: Training
    equal_compute: bool = Field(True, description="also train growth and the shallow model for monolithic's FLOPs")
    seeds: tuple[int, ...] = Field((0, 1), min_length=1)
    prefix: Prefix = "auto"


@dataclass(frozen=True)
class Run:
    """One run of a study: a plan on a kind of embedding for so many tokens."""

    name: str
    kind: Kind
    plan: Plan
    tokens: int
    seed: int

    @property
    def directory(self) -> str:
        """Where it lies in the study's ``runs``."""
        return f"{self.name.replace(' ', '-').replace(',', '')}-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What the runs of one name reached: means over their seeds, and the lowest and highest bits per byte."""

    name: str
    seeds: int
    active: int
    optimiser: float
    tokens: int
    flops: float
    seconds: float
    bits_per_byte: float
    low: float
    high: float
    texts: dict[str, float]
    recovered: float | None


def study(recipe: StudyRecipe, console: Console | None = None) -> list[Outcome]:
    """Make all runs that are not there yet, and compare them; an interrupted study goes on where it stopped.

    Leaves ``study.json`` in the output, and every run, with all its stages, in ``runs``.

    Raises:
        TreeringError: a run that is there is of another plan, training or corpus; two have one name; see also
            ``treering.growth.grow``.
    """
    console, output = console or Console(), Path(recipe.output)
    tokenizer = load_tokenizer(recipe.tokenizer)
    for kind in dict.fromkeys(("glyph", *recipe.kinds)):
        place = output / "substrates" / kind
        if not place.exists():
            with staged_directory(place) as staging:
                width = recipe.backbone.shape().d_model
                substrates.build(tokenizer, width, kind=kind).save(staging, tokenizer)
    made = runs(recipe)
    for number, run in enumerate(made, 1):
        if (output / "runs" / run.directory).exists():
            _require_same(output / "runs" / run.directory, _recipe(recipe, run))
        else:
            console.print(f"[bold]{run.name}[/], seed {run.seed} ({number} of {len(made)})", highlight=False)
            grow_recipe(_recipe(recipe, run), console)
    outcomes = compare(output, made)
    (output / "study.json").write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    return outcomes


def runs(recipe: StudyRecipe) -> list[Run]:
    """All runs of a study: grown, monolithic and shallow for the same tokens, then for the same compute.

    Raises:
        TreeringError: two would have one name.
    """
    plan = as_plan(recipe.plan)
    depth, corpus = steps(plan)[-1].depth, corpora.Corpus.load(recipe.data)
    backbone = replace(recipe.backbone.shape(), vocab_size=corpus.manifest.tokenizer.vocab_size)
    shape = shape_of(gpt_neox(backbone), corpus.manifest.block_size)
    whole = recipe.training.tokens or round((recipe.training.epochs or 0) * corpus.manifest.train.tokens)
    named: list[tuple[str, Kind, Plan]] = [
        *((f"grown, {kind}", kind, plan) for kind in recipe.kinds),
        *((f"monolithic, {kind}", kind, plans.monolithic(depth)) for kind in recipe.kinds),
        ("shallow, glyph", "glyph", plans.monolithic(_shallow(plan, shape))),
        *((name, "glyph", as_plan(other)) for name, other in recipe.more.items()),
    ]
    found = [Run(*each, whole, seed) for each in named for seed in recipe.seeds]
    if recipe.equal_compute:
        budget = _flops(plans.monolithic(depth), whole, shape)
        for name, kind, own in named:
            if kind == "glyph" and not name.startswith("monolithic"):
                tokens = round(whole * budget / _flops(own, whole, shape))
                found += [Run(f"{name}, equal compute", kind, own, tokens, seed) for seed in recipe.seeds]
    names = [run.directory for run in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TreeringError(f"Two runs of the study would be called {twice[0]}. Give the plans under more other names.")
    return found


def _require_same(place: Path, recipe: GrowthRecipe) -> None:
    """Refuse to compare a run that was made by another recipe as if it were this one."""
    record = json.loads((place / "growth.json").read_text())
    # Read, not compared as text: what an earlier version did not know of is at its default.
    made = {
        "plan": Plan.model_validate(record["plan"]),
        "training": Training.model_validate(record["training"]),
        "prefix": record["prefix"],
    }
    wanted = {"plan": as_plan(recipe.plan), "training": recipe.training, "prefix": recipe.prefix}
    corpus = corpora.Corpus.load(recipe.data).fingerprint
    others = [name for name, value in wanted.items() if made[name] != value]
    if others or record["origin"]["corpus"] != corpus:
        raise TreeringError(
            f"{place} was made with another {(others or ['corpus'])[0]} than the study asks for. "
            "Choose another output, or remove it."
        )


def compare(output: Path, made: Sequence[Run]) -> list[Outcome]:
    """What finished runs reached, by name, and the share of depth's gain that each recovered.

    ``recovered`` = (shallow − it) / (shallow − monolithic) in bits per byte, both on glyphs and the same tokens: 0 is
    the shallow model of the same active budget, 1 the monolithic one of full depth.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for run in made:
        place = output / "runs" / run.directory
        record = json.loads((place / "growth.json").read_text())
        record["abilities"] = json.loads((place / "abilities.json").read_text())
        by_name.setdefault(run.name, []).append(record)
    bits = {name: [_last(record) for record in records] for name, records in by_name.items()}
    mean = {name: statistics.mean(found) for name, found in bits.items()}
    shallow, whole = mean.get("shallow, glyph"), mean.get("monolithic, glyph")
    outcomes = []
    for name, records in by_name.items():
        stages = [stage for record in records for stage in record["stages"]]
        active = max(stage["active"] for stage in stages)
        recovered = None if None in (shallow, whole) else (shallow - mean[name]) / (shallow - whole)  # type: ignore[operator]
        outcomes.append(
            Outcome(
                name=name,
                seeds=len(records),
                active=active,
                optimiser=round(active * ADAM / 2**20, 2),
                tokens=sum(stage["tokens"] for stage in records[0]["stages"]),
                flops=sum(stage["flops"] for stage in records[0]["stages"]),
                seconds=round(sum(s["seconds"] + s["prefix_seconds"] for s in stages) / len(records), 1),
                bits_per_byte=round(mean[name], 4),
                low=round(min(bits[name]), 4),
                high=round(max(bits[name]), 4),
                texts=_texts(records),
                recovered=None if recovered is None else round(recovered, 3),
            )
        )
    return outcomes


def as_study_table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes as people read them."""
    texts = list(outcomes[0].texts)
    table = Table("bits per byte", box=None)
    for name in ("active", "Adam MiB", "M tokens", "TFLOPs", "seconds", "held out", *texts, "recovered"):
        table.add_column(name, justify="right")
    for one in outcomes:
        spread = f" ({one.low:.3f}–{one.high:.3f})" if one.seeds > 1 else ""
        table.add_row(
            one.name,
            f"{one.active:,}",
            f"{one.optimiser:.2f}",
            f"{one.tokens / 1e6:.2f}",
            f"{one.flops / 1e12:.1f}",
            f"{one.seconds:,.0f}",
            f"{one.bits_per_byte:.4f}{spread}",
            *(f"{one.texts[text]:.3f}" for text in texts),
            "" if one.recovered is None else f"{one.recovered:+.2f}",
        )
    return table


def histories(recipe: StudyRecipe, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The loss curves of one seed's runs for the same tokens, by name."""
    chosen = [run for run in runs(recipe) if run.seed == seed and not run.name.endswith("equal compute")]
    place = Path(recipe.output) / "runs"
    return {run.name: json.loads((place / run.directory / "history.json").read_text()) for run in chosen}


def _recipe(recipe: StudyRecipe, run: Run) -> GrowthRecipe:
    output = Path(recipe.output)
    return GrowthRecipe(
        substrate=os.fspath(output / "substrates" / run.kind),
        data=recipe.data,
        output=os.fspath(output / "runs" / run.directory),
        backbone=recipe.backbone,
        plan=run.plan,
        training=recipe.training.model_copy(update={"tokens": run.tokens, "epochs": None, "seed": run.seed}),
        prefix=recipe.prefix,
    )


def _shallow(plan: Plan, shape: Shape) -> int:
    """Blocks of the deepest monolithic model that has no more active parameters than the plan."""
    most = _active(plan, shape)
    return max(
        (d for d in range(1, steps(plan)[-1].depth + 1) if _active(plans.monolithic(d), shape) <= most), default=1
    )


def _active(plan: Plan, shape: Shape) -> int:
    placed = steps(plan)
    return max(cost.active for cost in count(placed, [1] * len(placed), shape))


def _flops(plan: Plan, tokens: int, shape: Shape) -> float:
    placed = steps(plan)
    lengths = [round(step.stage.tokens or (step.stage.share or 0) * tokens) for step in placed]
    return sum(cost.flops for cost in count(placed, lengths, shape))


def _last(record: Mapping[str, Any]) -> float:
    return record["stages"][-1]["validation_bits_per_byte"]


def _texts(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean bits per byte over the runs, by text."""
    values: dict[str, list[float]] = {}
    for ability in (ability for record in records for ability in record["abilities"]):
        if ability["measure"] == "bits per byte":
            values.setdefault(ability["text"], []).append(ability["value"])
    return {text: round(statistics.mean(found), 4) for text, found in values.items()}
