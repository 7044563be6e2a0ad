"""The controlled study (paper section 5): growth against monolithic and shallow training, on three kinds of embedding.

Every run reads the same text in the same order and is measured alike; each is a growth plan of its own. Rate, warm-up
and schedule are chosen for every row by the same search, on pages set apart for it; the held-out pages are read once,
when all has been chosen.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field
from rich.console import Console

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import gpt_neox
from treering.composition import load_model
from treering.errors import TreeringError
from treering.evaluation import Ability, abilities, held_out_texts
from treering.evaluation.search import rates
from treering.growth import plans
from treering.growth.cost import Shape, StageCost, count, shape_of
from treering.growth.outcome import Outcome, outcomes
from treering.growth.plan import Plan, steps
from treering.growth.prefix import Prefix
from treering.growth.recipe import PLANS, GrowthRecipe, PlanField, as_plan, begin, grow_recipe
from treering.output import locked, staged_directory, unfinished_of, write_file
from treering.recipe import Schema, Seed
from treering.substrate.substrate import Kind
from treering.tokenizer import load as load_tokenizer
from treering.training import Backbone, Training
from treering.training.divergence import Divergence
from treering.training.settings import Schedule
from treering.training.unfinished import is_complete, remove

KINDS: tuple[Kind, ...] = ("glyph", "code", "trainable")


class Search(Schema):
    """What every row tries for itself: one thing after the other, the rest at the best so far (the first, to begin).

    Where the best rate is the lowest or highest tried, the search goes on beyond it, at the same distance.
    """

    learning_rate: tuple[Annotated[float, Field(gt=0)], ...] = Field((4e-3, 8e-3, 1.6e-2), min_length=1)
    warmup: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.3, 0.1, 0.5), min_length=1)
    schedule: tuple[Schedule, ...] = Field(("cosine", "linear"), min_length=1)


class StudyRecipe(Schema):
    """What ``treering study growth`` reads."""

    ready: ClassVar[Mapping[str, Mapping[str, BaseModel]]] = {"plan": PLANS}

    tokenizer: str = Field(description="directory of the tokenizer; the substrates are made by the study")
    data: str = Field(description="directory of the corpus, prepared with a share for calibration")
    output: str = Field(description="directory of the study: runs that are there are not made again")
    backbone: Backbone = Backbone()
    plan: PlanField = Field(description="the growth that is studied")
    more: dict[str, PlanField] = Field({}, description="by name, other plans to compare, on glyphs")
    kinds: tuple[Kind, ...] = Field(KINDS, description="embeddings: glyph, code (16-bit), random, trainable")
    training: Training = Field(description="of every run, but for what is searched")
    search: Search = Field(
        Search(), description="rates, warm-ups and schedules that each row tries, with the first seed"
    )
    equal_compute: bool = Field(True, description="also train growth and the shallow model for monolithic's FLOPs")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    prefix: Prefix = "auto"


@dataclass(frozen=True)
class Row:
    """One row of a study: a plan on a kind of embedding for so many tokens."""

    name: str
    kind: Kind
    plan: Plan
    tokens: int

    @property
    def directory(self) -> str:
        """Where its runs lie in the study's ``runs``."""
        return self.name.replace(" ", "-").replace(",", "")


def study(recipe: StudyRecipe, console: Console | None = None) -> list[Outcome]:
    """Search, train and compare; an interrupted study goes on where it stopped.

    Leaves ``study.json`` in the output, in ``runs`` every run, and in ``measured`` what the chosen ones reached on the
    held-out pages.

    Raises:
        TreeringError: the corpus sets no pages apart, a run that is there is of another plan, training or corpus, two
            rows have one name, all that a row tried diverged, or another process makes this study; see also
            ``treering.growth.grow``.
    """
    console, output = console or Console(), Path(recipe.output)
    corpus, made = corpora.Corpus.load(recipe.data), rows(recipe)
    if not corpus.manifest.calibration.documents:
        raise TreeringError(
            f"{recipe.data} sets no documents apart that rates and schedules could be chosen on. Prepare it again "
            "with --calibration 0.05, say."
        )
    with locked(output):
        make_substrates(recipe)
        chosen: dict[str, Training] = {}
        for number, row in enumerate(made, 1):
            console.print(f"[bold]{row.name}[/] ({number} of {len(made)})", highlight=False)
            chosen[row.name] = search(recipe, row, console)
            for seed in recipe.seeds:
                finish(recipe, row, chosen[row.name], seed, console)
        measured = {row.name: [measure(recipe, row, seeded(chosen[row.name], s)) for s in recipe.seeds] for row in made}
        found = compare(recipe, made, chosen, measured)
        write_file(output / "study.json", json.dumps([asdict(outcome) for outcome in found], indent=1))
    return found


def make_substrates(recipe: StudyRecipe) -> None:
    """Make the substrates of a study, glyphs always among them, where they are not there yet."""
    tokenizer = load_tokenizer(recipe.tokenizer)
    for kind in dict.fromkeys(("glyph", *recipe.kinds)):
        place = Path(recipe.output) / "substrates" / kind
        if not place.exists():
            with staged_directory(place) as staging:
                width = recipe.backbone.shape().d_model
                substrates.build(tokenizer, width, kind=kind).save(staging, tokenizer)


def finish(recipe: StudyRecipe, row: Row, chosen: Training, seed: int, console: Console) -> None:
    """Train a row with a seed in the settings that were chosen for it, if that run is not there yet.

    Raises:
        TreeringError: it diverges, which it did not with the seed that they were chosen with.
    """
    if math.isinf(run(recipe, row, seeded(chosen, seed), console)):
        raise TreeringError(
            f"The row {row.name} diverged with seed {seed}, at a rate ({chosen.learning_rate:g}) "
            f"chosen with seed {recipe.seeds[0]}. Choose another output, with lower rates in "
            "search.learning_rate or with other seeds."
        )


def rows(recipe: StudyRecipe) -> list[Row]:
    """All rows of a study: grown, monolithic and shallow for the same tokens, then for the same compute.

    A plan that trains all blocks at once has no shallow model of its budget: that would be the monolithic one.

    Raises:
        TreeringError: two would have one name.
    """
    plan = as_plan(recipe.plan)
    depth, whole, shape = steps(plan)[-1].depth, _tokens(recipe), _shape(recipe)
    blocks = _shallow(plan, shape)
    shallow: list[tuple[str, Kind, Plan]] = [("shallow, glyph", "glyph", plans.monolithic(blocks))]
    named: list[tuple[str, Kind, Plan]] = [
        *((f"grown, {kind}", kind, plan) for kind in recipe.kinds),
        *((f"monolithic, {kind}", kind, plans.monolithic(depth)) for kind in recipe.kinds),
        *(shallow if blocks < depth else []),
        *((name, "glyph", as_plan(other)) for name, other in recipe.more.items()),
    ]
    found = [Row(*each, whole) for each in named]
    if recipe.equal_compute:
        budget = flops(plans.monolithic(depth), whole, shape)
        for name, kind, own in named:
            if name in ("grown, glyph", "shallow, glyph"):
                found.append(Row(f"{name}, equal compute", kind, own, round(whole * budget / flops(own, whole, shape))))
    places = [row.directory for row in found]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise TreeringError(f"Two runs of the study would be called {twice[0]}. Give the plans under more other names.")
    return found


def search(recipe: StudyRecipe, row: Row, console: Console) -> Training:
    """The settings with which a row reaches the fewest bits on the pages set apart, among those that `Search` tries.

    Raises:
        TreeringError: whatever it tried diverged.
    """
    first = {name: values[0] for name, values in recipe.search}
    best = recipe.training.model_copy(update={"tokens": row.tokens, "epochs": None, "seed": recipe.seeds[0]} | first)
    tried: dict[Any, float] = {}
    for name, values in recipe.search:
        tried = {}
        for value in rates(values, tried) if name == "learning_rate" else values:
            settings = best.model_copy(update={name: value})
            if value == getattr(best, name) or not _same_run(row.plan, settings, best):
                tried[value] = run(recipe, row, settings, console)
        best = best.model_copy(update={name: min(tried, key=tried.__getitem__)})
    if math.isinf(min(tried.values())):
        raise TreeringError(
            f"Whatever the row {row.name} tried diverged. Give search.learning_rate lower rates, or search.warmup "
            "longer ones, or look at the corpus."
        )
    return best


def run(recipe: StudyRecipe, row: Row, settings: Training, console: Console) -> float:
    """Bits per byte on the pages set apart, at the end of a run, which is made if it is not there yet.

    Of one that diverged, infinity; a file beside where it would be says so, and it is not tried again.
    """
    own = _recipe(recipe, row, settings)
    place = Path(own.output)
    diverged = place.with_name(f"{place.name}.diverged.json")
    if diverged.exists():
        _require_same(diverged, own)
        remove(unfinished_of(place))
        return math.inf
    if is_complete(place):
        _require_same(place / "growth.json", own)
    else:
        found = begin(own)
        try:
            grow_recipe(own, console, found)  # watched on the pages set apart; those held out are read by `measure`
        except Divergence as error:
            record = own.model_dump(mode="json") | {"plan": row.plan.model_dump(mode="json"), "origin": found.origin}
            write_file(diverged, json.dumps(record | {"diverged": str(error)}, indent=1))
            remove(unfinished_of(place))
            where = str(error).partition(". ")[0]
            console.print(f"  {where}: it counts as infinitely bad", highlight=False, markup=False)
            return math.inf
    return json.loads((place / "growth.json").read_text())["stages"][-1]["validation_bits_per_byte"]


def measure(recipe: StudyRecipe, row: Row, settings: Training) -> dict[str, Any]:
    """What a finished run reached on the held-out pages, and the seconds that it took; kept in ``measured``."""
    own = place_of(recipe, row, settings)
    path = Path(recipe.output) / "measured" / f"{row.directory}-{own.name}.json"
    if not path.exists():
        found: list[Ability] = abilities(
            row.name, load_model(own), load_tokenizer(own), held_out_texts([recipe.data], "validation")
        )
        stages = json.loads((own / "growth.json").read_text())["stages"]
        seconds = sum(stage["seconds"] + stage["prefix_seconds"] for stage in stages)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"abilities": found, "seconds": seconds}, indent=1))
    return json.loads(path.read_text())


def compare(
    recipe: StudyRecipe,
    made: Sequence[Row],
    chosen: Mapping[str, Training],
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Outcome]:
    """The table of a study; see ``treering.growth.outcome``."""
    shape = _shape(recipe)
    return outcomes(
        {row.name: (counted(row.plan, row.tokens, shape, row.kind), chosen[row.name]) for row in made}, measured
    )


def histories(recipe: StudyRecipe) -> dict[str, list[dict[str, Any]]]:
    """The loss curves of the first seed's chosen runs for the same tokens, by name, from a finished study."""
    quiet, found = Console(quiet=True), {}
    for row in rows(recipe):
        if not row.name.endswith("equal compute"):
            place = place_of(recipe, row, search(recipe, row, quiet))
            found[row.name] = json.loads((place / "history.json").read_text())
    return found


def place_of(recipe: StudyRecipe, row: Row, settings: Training) -> Path:
    """Where a row's run lies, made or not."""
    return Path(_recipe(recipe, row, settings).output)


def _recipe(recipe: StudyRecipe, row: Row, settings: Training) -> GrowthRecipe:
    output = Path(recipe.output)
    name = f"{settings.learning_rate:g}-{settings.warmup:g}-{settings.schedule}-{settings.seed}"
    return GrowthRecipe(
        substrate=os.fspath(output / "substrates" / row.kind),
        data=recipe.data,
        output=os.fspath(output / "runs" / row.directory / name),
        backbone=recipe.backbone,
        plan=row.plan,
        training=settings,
        prefix=recipe.prefix,
        abilities=False,
    )


def _require_same(path: Path, recipe: GrowthRecipe) -> None:
    """Refuse to compare a run, whose record is at ``path``, as if it were this one where another recipe made it."""
    record = json.loads(path.read_text())
    # Read, not compared as text: what an earlier version did not know of is at its default.
    made = {
        "plan": Plan.model_validate(record["plan"]),
        "training": Training.model_validate(record["training"]),
        "prefix": record["prefix"],
        "corpus": record["origin"]["data"]["train"]["sha256"],
    }
    wanted = {
        "plan": as_plan(recipe.plan),
        "training": recipe.training,
        "prefix": recipe.prefix,
        "corpus": corpora.load_manifest(recipe.data).train.sha256,
    }
    if others := [name for name, value in wanted.items() if made[name] != value]:
        raise TreeringError(
            f"{path} was made with another {others[0]} than the study asks for. Choose another output, or remove it."
        )


def seeded(settings: Training, seed: int) -> Training:
    """The settings of a row's run with another seed."""
    return settings.model_copy(update={"seed": seed})


def _same_run(plan: Plan, one: Training, other: Training) -> bool:
    """Whether every stage of a plan trains alike under both settings."""
    return all(stage.training(one, 1) == stage.training(other, 1) for stage in plan.stages)


def _tokens(recipe: StudyRecipe) -> int:
    whole = corpora.load_manifest(recipe.data).train.tokens
    return recipe.training.tokens or round((recipe.training.epochs or 0) * whole)


def _shape(recipe: StudyRecipe) -> Shape:
    manifest = corpora.load_manifest(recipe.data)
    backbone = replace(recipe.backbone.shape(), vocab_size=manifest.tokenizer.vocab_size)
    return shape_of(gpt_neox(backbone), manifest.block_size)


def _shallow(plan: Plan, shape: Shape) -> int:
    """Blocks of the deepest monolithic model that has no more active parameters than the plan."""
    most = _active(plan, shape)
    return max(
        (d for d in range(1, steps(plan)[-1].depth + 1) if _active(plans.monolithic(d), shape) <= most), default=1
    )


def _active(plan: Plan, shape: Shape) -> int:
    return max(cost.active for cost in counted(plan, 1, shape))


def flops(plan: Plan, tokens: int, shape: Shape) -> float:
    """FLOPs of all stages of a plan that reads so many tokens."""
    return sum(cost.flops for cost in counted(plan, tokens, shape))


def counted(plan: Plan, tokens: int, shape: Shape, kind: Kind = "glyph") -> list[StageCost]:
    """What each stage of a plan that reads so many tokens holds and costs."""
    placed = steps(plan)
    lengths = [round(step.stage.tokens or (step.stage.share or 0) * tokens) for step in placed]
    return count(placed, lengths, shape, embedding_trains=kind == "trainable")
