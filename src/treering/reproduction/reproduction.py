"""The reproduction as a whole: texts, tokenizer, substrates, runs, measures, findings.

All rows go one way: the growth study's, which finds a row's rate on pages set apart with the first seed, trains every
seed, and goes on after an interruption. Held-out pages are read when everything has been trained.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition import add_expert, compose, compose_directories, load_model, remove_expert
from treering.corpus import training_texts
from treering.evaluation import DocumentLosses, choose, composition_losses, continuations, document_losses, recalls
from treering.evaluation.forgetting import all_together
from treering.evaluation.owned_texts import Apart, OwnedTexts
from treering.growth.study import Row, Search, StudyRecipe, finish, make_substrates, place_of, search, seeded
from treering.output import locked, require_common, staged_directory, write_file
from treering.reproduction.claims import (
    ALL,
    BEST,
    CONTINUATION,
    RECALL,
    RULES,
    Finding,
    claims,
    expert,
    joined,
    judge,
    stage,
    value,
)
from treering.reproduction.recipe import ReproductionRecipe
from treering.reproduction.rows import KINDS, MONOLITHIC, STACKED, STACKED_CODE, Cost, expected, experts, rows
from treering.seal import file_digest
from treering.training import Training

Losses = dict[str, DocumentLosses]
"""By text."""

QUESTIONS = 100
"""Of recall, made of each text; only who may know answers is asked: what grows, and the monolithic model."""


@dataclass(frozen=True)
class Reached:
    """What a row or composition reached.

    Attributes:
        values: by text, of each seed, bits per byte or the share of wrong choices.
        rate: the learning rate that was chosen; of what is no run of its own, as all that follows, none.
        active: parameters that train at once, at most; ``tokens``: read in one run.
        seconds: of one run, mean over the seeds.
    """

    name: str
    values: dict[str, tuple[float, ...]]
    rate: float | None = None
    active: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Jump:
    """What a stage's begin did to the training loss of a grown model, in bits per byte.

    Attributes:
        before, after: last of the stage before, first of this one.
        back: share of this stage's tokens after which it was first below ``before``; None if it never was.
    """

    row: str
    seed: int
    stage: int
    before: float
    after: float
    back: float | None


@dataclass(frozen=True)
class Reproduction:
    """Findings in the order of the claims, and all that they rest on."""

    findings: list[Finding]
    reached: list[Reached]
    jumps: list[Jump]
    documents: dict[str, int]


def reproduce(recipe: ReproductionRecipe, console: Console | None = None) -> Reproduction:
    """Search, train, join, measure and judge; what was interrupted goes on where it stopped.

    Leaves ``reproduction.json`` in the output, in ``runs`` every run, in ``measured`` the losses of every document.

    Raises:
        TreeringError: what is in the output is of other texts or another training, all rates of a row diverged, or
            another process makes this reproduction; see also ``treering.growth.study.finish`` and
            ``treering.corpus.prepare``.
    """
    console = console or Console()
    with locked(recipe.output):
        return _Reproducing(recipe, console).results()


class _Reproducing:
    """What all rows share: the texts, the tokenizer, the runs that were made."""

    def __init__(self, recipe: ReproductionRecipe, console: Console) -> None:
        self.recipe, self.console, self.output = recipe, console, Path(recipe.output)
        self.tokenizer = self._tokenizer()
        apart = Apart(recipe.validation, recipe.calibration, recipe.documents)
        context = recipe.backbone.shape().context
        self.owned = OwnedTexts(recipe.texts, {}, apart, self.tokenizer, context, self.output)
        self.members = experts(recipe)
        self._claim()

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        recipe, place = self.recipe, self.output / "tokenizer"
        if not place.exists():
            self.console.print(f"a tokenizer of {recipe.vocab_size:,} tokens from the training pages", highlight=False)
            texts = {
                name: training_texts(source, recipe.validation, recipe.calibration)
                for name, source in recipe.texts.items()
            }
            made = tokenizers.train(texts, vocab_size=recipe.vocab_size)
            with staged_directory(place) as staging:
                tokenizers.save(made, staging)
        return tokenizers.load(place)

    def _claim(self) -> None:
        """Note what all runs have in common; more seeds and rates may come later."""
        recipe = self.recipe
        own = {
            "texts": self.owned.digests(list(recipe.texts)),
            "backbone": recipe.backbone.model_dump(mode="json"),
            "training": recipe.training.model_dump(mode="json", exclude={"learning_rate", "seed"}),
            **{
                name: getattr(recipe, name)
                for name in ("vocab_size", "depth", "width", "lora", "validation", "calibration", "documents")
            },
        }
        require_common(self.output / "common.json", own)

    # ------------------------------------------------------------------------------------------ runs

    def studied(self, corpus: Path) -> StudyRecipe:
        """The growth study's recipe for rows that read a corpus; all of them share one output."""
        recipe = self.recipe
        return StudyRecipe(
            tokenizer=os.fspath(self.output / "tokenizer"),
            data=os.fspath(corpus),
            output=os.fspath(self.output),
            backbone=recipe.backbone,
            plan=rows(recipe)[0].plan,
            kinds=KINDS,
            training=recipe.training,
            search=Search(
                learning_rate=recipe.rates, warmup=(recipe.training.warmup,), schedule=(recipe.training.schedule,)
            ),
            seeds=recipe.seeds,
        )

    def trained(self) -> dict[str, tuple[Training, list[Path]]]:
        """By row, the settings that it chose and, seed by seed, where its runs lie."""
        pooled = self.studied(self.owned.pooled())
        make_substrates(pooled)
        made: list[tuple[Row, StudyRecipe]] = [
            (member.row, self.studied(self.owned.together(member.row.directory, member.reads)))
            for member in self.members
        ]
        made += [(row, pooled) for row in rows(self.recipe)]
        chosen = {}
        for number, (row, study) in enumerate(made, 1):
            self.console.print(f"[bold]{row.name}[/] ({number} of {len(made)})", highlight=False)
            chosen[row.name] = search(study, row, self.console)
        # Seed after seed, so that a reproduction which is cut short has fewer seeds, not fewer rows.
        for seed in self.recipe.seeds[1:]:
            for row, study in made:
                self.console.print(f"[bold]{row.name}[/], seed {seed}", highlight=False)
                finish(study, row, chosen[row.name], seed, self.console)
        return {
            row.name: (own := chosen[row.name], [place_of(study, row, seeded(own, seed)) for seed in self.recipe.seeds])
            for row, study in made
        }

    # ------------------------------------------------------------------------------------------ measures

    def of_model(self, place: Path, ask: bool = False) -> Losses:
        """What the model in a directory loses on each text, and asked questions, too; kept in ``measured``."""
        name = "-".join(place.relative_to(self.output / "runs").parts)

        def measure() -> dict[str, Losses]:
            model, held = load_model(place), self.owned.held_out
            found = {text: document_losses(model, self.tokenizer, documents) for text, documents in held.items()}
            return {"": found | (self._asked(model) if ask else {})}

        return self._kept(name, measure)[""]

    def _asked(self, model: PreTrainedModel) -> Losses:
        held, found = self.owned.held_out, Losses()
        for measure, make in ((RECALL, partial(recalls, count=QUESTIONS)), (CONTINUATION, continuations)):
            wrong = [
                choose(model, self.tokenizer, questions) != np.array([question.answer for question in questions])
                for documents in held.values()
                if (questions := make(documents))
            ]
            if wrong:
                whole = np.concatenate(wrong).astype(float)
                found[measure] = DocumentLosses(whole, np.ones(len(whole)))
        return found

    def of_composition(self, places: Mapping[str, Path]) -> dict[str, Losses]:
        """What experts lose joined by each rule, by rule."""
        name = "-".join(f"{name}-{place.name}" for name, place in places.items())

        def measure() -> dict[str, Losses]:
            model = compose({expert(name).replace(" ", "-"): load_model(place) for name, place in places.items()})
            found: dict[str, Losses] = {rule: {} for rule in RULES}
            for text, documents in self.owned.held_out.items():
                losses = composition_losses(model, self.tokenizer, documents, list(RULES.values()))
                for rule, spec in RULES.items():
                    found[rule][text] = losses[spec]
            return found

        return self._kept(f"joined-{name}", measure)

    def _kept(self, name: str, measure: Callable[[], dict[str, Losses]]) -> dict[str, Losses]:
        """What was measured before, or now; with all texts together beside each."""
        path = self.output / "measured" / f"{name}.json"
        if not path.exists():
            made = {
                key: {text: {"nats": own.nats.tolist(), "bytes": own.bytes.tolist()} for text, own in losses.items()}
                for key, losses in measure().items()
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(made))
        found: dict[str, Losses] = {}
        for key, losses in json.loads(path.read_text()).items():
            found[key] = {
                text: DocumentLosses(np.array(own["nats"]), np.array(own["bytes"])) for text, own in losses.items()
            }
            found[key][ALL] = all_together(found[key][text] for text in self.recipe.texts)
        return found

    def measured(self, runs: Mapping[str, tuple[Training, list[Path]]], at: int) -> dict[str, Losses]:
        """By model, what it lost with the seed in that place."""
        recipe, found = self.recipe, dict[str, Losses]()
        for row in rows(recipe):
            place = runs[row.name][1][at]
            found[row.name] = self.of_model(place, row.name in (MONOLITHIC, STACKED))
            if row.name in (STACKED, STACKED_CODE):
                for number, depth in enumerate(recipe.depths[:-1], 1):
                    found[stage(depth, row.name)] = self.of_model(place / "stages" / f"{number}", row.name == STACKED)
                found[stage(recipe.depth, row.name)] = found[row.name]
        for member in self.members:
            found[expert(member.name)] = self.of_model(runs[member.row.name][1][at])
        specialists = [found[expert(name)] for name in recipe.specialists]
        found[BEST] = {
            text: min((own[text] for own in specialists), key=lambda losses: losses.nats.sum())
            for text in (*recipe.texts, ALL)
        }
        places = {member.name: runs[member.row.name][1][at] for member in self.members}
        some = {name: places[name] for name in recipe.specialists}
        for joining in (some, places):
            for rule, losses in self.of_composition(joining).items():
                found[joined(rule, len(joining))] = losses
        return found

    def comes_and_goes(self, places: Mapping[str, Path]) -> bool:
        """Whether the last expert joins the others without a change to their files, and leaves the same bytes."""
        *first, last = places
        with tempfile.TemporaryDirectory(dir=self.output) as scratch:
            whole = Path(scratch) / "joined"
            compose_directories({name: places[name] for name in first}, whole)
            before, apart = digests(whole), {name: digests(place) for name, place in places.items()}
            add_expert(whole, places[last], last)
            during = digests(whole)
            weights = {name: value for name, value in before.items() if name.endswith(".safetensors")}
            untouched = weights.items() <= during.items() and during != before
            remove_expert(whole, last)
            same = digests(whole) == before
            return untouched and same and {name: digests(place) for name, place in places.items()} == apart

    # ------------------------------------------------------------------------------------------ results

    def results(self) -> Reproduction:
        """Everything, in order; held-out pages are read when the last run is made."""
        recipe, runs = self.recipe, self.trained()
        self.console.print("[bold]held-out pages[/]", highlight=False)
        seeds = [self.measured(runs, at) for at in range(len(recipe.seeds))]
        costs = {cost.row.name: cost for cost in expected(recipe)}
        facts = {"comes and goes": self.comes_and_goes({m.name: runs[m.row.name][1][0] for m in self.members})}
        largest = max(cost.total for cost in costs.values())
        reached = [
            _reached(costs[name], chosen.learning_rate, places, seeds) for name, (chosen, places) in runs.items()
        ]
        others = [name for name in seeds[0] if name not in runs and not name.startswith("expert ")]
        found = Reproduction(
            [judge(claim, seeds, facts) for claim in claims(recipe, largest)],
            [*reached, *(Reached(name, values=_values(name, seeds)) for name in others)],
            [
                jump
                for name, (_, places) in runs.items()
                for seed, place in zip(recipe.seeds, places, strict=True)
                for jump in jumps(name, seed, json.loads((place / "history.json").read_text()))
            ],
            {text: len(losses.nats) for text, losses in seeds[0][MONOLITHIC].items()},
        )
        write_file(self.output / "reproduction.json", json.dumps(asdict(found), indent=1))
        return found


def _reached(cost: Cost, rate: float, places: Sequence[Path], seeds: Sequence[Mapping[str, Losses]]) -> Reached:
    records = [json.loads((place / "training.json").read_text())["measured"] for place in places]
    seconds = statistics.mean(record["seconds"] for record in records)
    values = _values(cost.row.name, seeds)
    return Reached(cost.row.name, values, rate, cost.active, cost.row.tokens, cost.flops, round(seconds, 1))


def _values(name: str, seeds: Sequence[Mapping[str, Losses]]) -> dict[str, tuple[float, ...]]:
    return {text: tuple(round(value(own[name][text], text), 4) for own in seeds) for text in seeds[0][name]}


def jumps(row: str, seed: int, history: Sequence[Mapping[str, Any]]) -> list[Jump]:
    """What the beginnings of stages did to the training loss, from a run's ``history.json``."""
    stages: dict[int, list[Mapping[str, Any]]] = {}
    for entry in history:
        if "loss" in entry:
            stages.setdefault(entry.get("stage", 1), []).append(entry)
    found = []
    for old, new in pairwise(stages.values()):
        before, start, end = old[-1]["bits_per_byte"], old[-1]["tokens"], new[-1]["tokens"]
        below = next((entry["tokens"] for entry in new if entry["bits_per_byte"] < before), None)
        back = None if below is None else round((below - start) / (end - start), 3)
        found.append(Jump(row, seed, new[0]["stage"], before, new[0]["bits_per_byte"], back))
    return found


def digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file in a directory, by its place there."""
    return {
        os.fspath(path.relative_to(directory)): file_digest(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
