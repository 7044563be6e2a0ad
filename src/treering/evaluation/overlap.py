"""The study of compositions: owners × kinds of text × overlap, for the same compute, against models that read it all.

Each kind of text (a language, a domain) has one or more owners, who share some of its topics and none of its pages.
Each owner trains a member on what it has of a kind; the members of all kinds and owners are joined. Whatever is
compared reads as much of each kind as all of its members together, and has the rate that the same search chose for it
on pages set apart; held-out pages, and texts from outside that nothing was trained on, are read at the end.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_validator
from rich.console import Console
from transformers import PreTrainedModel

from treering import substrate as substrates
from treering.backbone import count_parameters
from treering.composition import DEFAULT_RULE, ComposedModel, compose, load_model, require_fitted, rule
from treering.corpus import Source
from treering.evaluation.bits import DocumentLosses, document_losses
from treering.evaluation.costs import Costs, costs
from treering.evaluation.forgetting import MIXTURE, all_together, composition_losses
from treering.evaluation.gains import Gains, Outcome, Yardstick, compared
from treering.evaluation.owned_texts import WHOLE, Apart, Cell, OwnedTexts
from treering.evaluation.search import best_rate
from treering.output import locked, require_common, unfinished_of, write_file
from treering.recipe import Schema, Seed
from treering.tokenizer import load as load_tokenizer
from treering.training import Backbone, ExpertRecipe, Training, train_expert
from treering.training.divergence import Divergence
from treering.training.expert import stand_on
from treering.training.unfinished import is_complete, remove

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
"""Of a text; it becomes part of the names of files and members, with "-" between parts."""

YardstickName = Literal["pooled", "large"]
"""One model of a member's size, and one of about the composition's, on all kinds' texts."""

ALONE = "model"
"""What the losses of a single model are called where those of a composition have the names of members and rules."""


class OverlapRecipe(Schema):
    """What ``treering study composition`` reads."""

    substrate: str = Field(description="directory of the substrate; it holds the tokenizer too")
    output: str = Field(description="directory of the study: runs that are there are not made again")
    kinds: dict[Name, Source] = Field(min_length=1, description="by name, where the documents of a kind are")
    outside: dict[Name, Source] = Field({}, description="by name, texts that are measured only")
    backbone: Backbone = Backbone()
    training: Training = Field(description="tokens: of a whole kind, by its members together; the rate is searched")
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-3, 3e-3, 1e-2), min_length=1)
    overlaps: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0, 0.25, 0.5, 1), min_length=1)
    members: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 4), min_length=1)
    seeds: tuple[Seed, ...] = Field((0, 1), min_length=1)
    rules: tuple[str, ...] = Field(
        (DEFAULT_RULE, f"{DEFAULT_RULE},together=0.01", "top_k", "probability", "mean"), min_length=1
    )
    yardsticks: tuple[YardstickName, ...] = ("pooled", "large")
    validation: float = Field(0.05, gt=0, lt=1, description="share of the documents to measure on")
    calibration: float = Field(0.03, gt=0, lt=1, description="share of the documents to choose rates and weights on")
    documents: int | None = Field(None, ge=2, description="held-out documents of each text; all if not given")

    @field_validator("training")
    @classmethod
    def _in_tokens(cls, training: Training) -> Training:
        if training.tokens is None:
            raise ValueError(
                "say in tokens how much is read of a kind: owners have more or less text, but the same compute"
            )
        return training

    @model_validator(mode="after")
    def _one_name_each(self) -> OverlapRecipe:
        if taken := [name for name in self.outside if name in self.kinds]:
            raise ValueError(f"{taken[0]} is the name of a kind and of a text from outside")
        if MIXTURE in (*self.kinds, *self.outside):
            raise ValueError(f"{MIXTURE} is the name of all kinds together; give the text another")
        return self


class Run(NamedTuple):
    """What trains: its name, the corpus (made when it is asked for), tokens to read, and blocks."""

    name: str
    corpus: Callable[[], Path]
    tokens: int
    layers: int


Make = Callable[[], PreTrainedModel]


def overlap(recipe: OverlapRecipe, console: Console | None = None) -> Gains:
    """Search, train, join, measure and compare; an interrupted study goes on where it stopped.

    The documents are held in memory. Leaves ``composition.json`` in the output, in ``texts`` and ``corpora`` what each
    owner has, in ``runs`` every run, and in ``measured`` the losses of every document.

    Raises:
        TreeringError: a rule does not exist or has to be fitted; an owner would have nothing of a kind; what is in the
            output is of other texts or another training; all rates diverged; another process makes this study; see
            also ``treering.corpus.prepare`` and ``treering.training.train_expert``.
    """
    console = console or Console()
    for spec in recipe.rules:
        require_fitted(None, rule(spec))
    substrates.require_substrate(recipe.substrate)
    with locked(recipe.output):
        study = _Study(recipe, console)
        study.claim()
        return study.results()


class _Study:
    """What all cells share: the texts, whose pages are whose, the runs that were made."""

    def __init__(self, recipe: OverlapRecipe, console: Console) -> None:
        self.recipe, self.console, self.output = recipe, console, Path(recipe.output)
        self.tokenizer, self.substrate = load_tokenizer(recipe.substrate), substrates.load(recipe.substrate)
        self.shape = stand_on(self.substrate, recipe.backbone.shape())
        self.rules = list(dict.fromkeys(str(rule(spec)) for spec in recipe.rules))
        self.cells = [
            Cell(members, overlap)
            for members in dict.fromkeys(recipe.members)
            for overlap in (dict.fromkeys(recipe.overlaps) if members > 1 else [None])
        ]
        apart = Apart(recipe.validation, recipe.calibration, recipe.documents)
        self.owned = OwnedTexts(recipe.kinds, recipe.outside, apart, self.tokenizer, self.shape.context, self.output)
        self._made: tuple[str, Any] = ("", None)  # the last model, which is asked about one text after the other

    def claim(self) -> None:
        """Note what all runs have in common; more overlaps, members, seeds, rates, rules, yardsticks may come later.

        Raises:
            TreeringError: the runs that are there have something else in common.
        """
        recipe = self.recipe
        own = {
            "substrate": self.substrate.fingerprint,
            "kinds": self.owned.digests(list(recipe.kinds)),
            "outside": self.owned.digests(list(recipe.outside)),
            "backbone": {name: getattr(self.shape, name) for name in ("layers", "heads", "context")},
            "training": recipe.training.model_dump(mode="json", exclude={"learning_rate", "seed"}),
            **{name: getattr(recipe, name) for name in ("validation", "calibration", "documents")},
        }
        require_common(self.output / "common.json", own)

    # ------------------------------------------------------------------------------------------ runs

    def member(self, kind: str, cell: Cell, owner: int) -> Run:
        """One owner's model of a kind."""
        assert self.recipe.training.tokens is not None
        name = f"member-{kind}" if cell == WHOLE else f"member-{kind}-{owner}of{cell.name}"
        tokens = self.recipe.training.tokens // cell.members
        return Run(name, partial(self.owned.corpus, kind, cell, owner), tokens, self.shape.layers)

    def pooled(self, layers: int | None = None) -> Run:
        """One model on all kinds' texts, of a member's size or of another depth."""
        assert self.recipe.training.tokens is not None
        name = "pooled" if layers is None else f"large-{layers}"
        tokens = self.recipe.training.tokens * len(self.recipe.kinds)
        return Run(name, self.owned.pooled, tokens, layers or self.shape.layers)

    def depth(self, members: int) -> int:
        """Blocks that make one model about as large as a composition of so many members of each kind."""
        block = self.active(self.shape.layers + 1) - self.active()
        return self.shape.layers + round((len(self.recipe.kinds) * members - 1) * self.active() / block)

    def active(self, layers: int | None = None) -> int:
        """Parameters of one model beside the substrate, which all share."""
        return count_parameters(replace(self.shape, layers=layers or self.shape.layers)).active

    def trained(self, run: Run, rate: float, seed: int) -> Path:
        """The directory of a run, made if it is not there yet.

        Raises:
            Divergence: it diverges, or did: a file beside where it would be says so, and it is not tried again.
        """
        place = self.output / "runs" / self._key(run, rate, seed)
        diverged = place.with_name(f"{place.name}.diverged.txt")
        if diverged.exists():
            raise Divergence(diverged.read_text())
        if is_complete(place):
            return place
        own = {"tokens": run.tokens, "epochs": None, "learning_rate": rate, "seed": seed}
        recipe = ExpertRecipe(
            substrate=self.recipe.substrate,
            data=os.fspath(run.corpus()),
            output=os.fspath(place),
            backbone=self.recipe.backbone.model_copy(update={"layers": run.layers}),
            training=self.recipe.training.model_copy(update=own).model_dump(),
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        self.console.print(place.name, highlight=False)
        try:
            train_expert(recipe, self.console)
        except Divergence as error:
            write_file(diverged, str(error))
            remove(unfinished_of(place))
            raise
        return place

    def composed(self, cell: Cell, rate: float, seed: int) -> ComposedModel:
        """The members of all kinds and owners, joined."""
        return compose(
            {
                f"{kind}-{owner}": self.single(self.member(kind, cell, owner), rate, seed)
                for owner in range(1, cell.members + 1)
                for kind in self.recipe.kinds
            }
        )

    def rate(self, name: str, runs: Mapping[Run, Sequence[str]]) -> float:
        """The learning rate with which runs reach the fewest bits on the pages set apart, with the first seed.

        Args:
            runs: with the kinds on which each is measured.
        """
        seed = self.recipe.seeds[0]

        def reached(rate: float) -> float:
            found = []
            for run, kinds in runs.items():
                key = self._key(run, rate, seed)
                for kind in kinds:
                    make = partial(self.single, run, rate, seed)
                    losses = self.losses(f"apart-{key}", make, kind, self.owned.calibration(kind))
                    found.append(losses[ALONE].bits_per_byte)
            return statistics.mean(found)

        return best_rate(name, self.recipe.rates, reached, self.console)

    def single(self, run: Run, rate: float, seed: int) -> PreTrainedModel:
        """The model that a run leaves."""
        return load_model(self.trained(run, rate, seed))

    def _key(self, run: Run, rate: float, seed: int) -> str:
        return f"{run.name}-{rate:g}-{seed}"

    # ------------------------------------------------------------------------------------------ measures

    def losses(self, key: str, make: Make, text: str, documents: Sequence[str]) -> dict[str, DocumentLosses]:
        """Losses of a composition's members and rules on a text, or those of a single model; kept in ``measured``."""
        path = self.output / "measured" / key / f"{text}.json"
        kept = json.loads(path.read_text()) if path.exists() else {"nats": {}}
        if self._lacks(kept["nats"]):
            model = self._model(key, make)
            found = (
                composition_losses(model, self.tokenizer, documents, self.rules)
                if isinstance(model, ComposedModel)
                else {ALONE: document_losses(model, self.tokenizer, documents)}
            )
            nats = {name: losses.nats.tolist() for name, losses in found.items()}
            kept = {"nats": kept["nats"] | nats, "bytes": next(iter(found.values())).bytes.tolist()}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(kept))
        size = np.array(kept["bytes"])
        return {name: DocumentLosses(np.array(nats), size) for name, nats in kept["nats"].items()}

    def costs(self, key: str, make: Make) -> dict[str, Costs]:
        """What decoding costs, by rule, or of a single model; kept in ``measured``."""
        path = self.output / "measured" / f"{key}.costs.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if self._lacks(kept):
            model = self._model(key, make)
            ways = {spec: partial(model.use, spec) for spec in self.rules} if isinstance(model, ComposedModel) else {}
            found = {name: costs(use(), self.shape.context) for name, use in ways.items()}
            kept |= {name: asdict(own) for name, own in (found or {ALONE: costs(model, self.shape.context)}).items()}
            write_file(path, json.dumps(kept))
        return {name: Costs(**own) for name, own in kept.items()}

    def _lacks(self, kept: Mapping[str, Any]) -> bool:
        """Whether a measurement was not made, or not by every rule."""
        return ALONE not in kept and not kept.keys() >= set(self.rules)

    def _model(self, key: str, make: Make) -> Any:
        if self._made[0] != key:
            self._made = key, make()
        return self._made[1]

    def measured(self, key: str, make: Make) -> dict[str, dict[str, DocumentLosses]]:
        """By text, the losses of a model; those of all kinds together beside them."""
        found = {text: self.losses(key, make, text, documents) for text, documents in self.owned.held_out.items()}
        first = found[next(iter(self.recipe.kinds))]
        return found | {
            MIXTURE: {name: all_together(found[kind][name] for kind in self.recipe.kinds) for name in first}
        }

    # ------------------------------------------------------------------------------------------ results

    @property
    def texts(self) -> list[str]:
        """What outcomes are told of: the kinds, all of them together, the texts from outside."""
        kinds = list(self.recipe.kinds)
        return [*kinds, *([MIXTURE] if len(kinds) > 1 else []), *self.recipe.outside]

    def results(self) -> Gains:
        """Every text's, by every rule, of every cell, in the recipe's order."""
        kinds, chosen = list(self.recipe.kinds), {}
        for members in dict.fromkeys(self.recipe.members):
            first = next(cell for cell in self.cells if cell.members == members)
            chosen[f"members, {members}"] = self.rate(
                f"members, {members}", {self.member(kind, first, 1): [kind] for kind in kinds}
            )
        yardsticks: dict[str, tuple[Yardstick, list[dict[str, DocumentLosses]]]] = {}
        for name, beside, run in self.one_models():
            called = name if beside is None else f"{name}, {beside}"
            chosen[called] = rate = self.rate(called, {run: kinds})
            yardsticks[called] = self.yardstick(name, beside, run, rate)
        found: dict[tuple[str, str, Cell], Outcome] = {}
        for cell in self.cells:
            self.console.print(f"[bold]{cell.members} of each kind, {cell.overlap or 0:.0%} shared[/]", highlight=False)
            others = {one.name: losses for one, losses in yardsticks.values() if one.members in (None, cell.members)}
            for outcome in self.outcomes(cell, chosen[f"members, {cell.members}"], others):
                found[outcome.text, outcome.rule, cell] = outcome
        gains = Gains(
            [found[text, spec, cell] for text in self.texts for spec in self.rules for cell in self.cells],
            [yardstick for yardstick, _ in yardsticks.values()],
            chosen,
        )
        write_file(self.output / "composition.json", json.dumps(asdict(gains), indent=1))
        return gains

    def one_models(self) -> list[tuple[str, int | None, Run]]:
        """The yardsticks: name, beside how many members (None: any), and what trains."""
        found: list[tuple[str, int | None, Run]] = []
        for name in dict.fromkeys(self.recipe.yardsticks):
            if name == "pooled":
                found.append((name, None, self.pooled()))
            else:
                found += [(name, own, self.pooled(self.depth(own))) for own in dict.fromkeys(self.recipe.members)]
        return found

    def yardstick(
        self, name: str, members: int | None, run: Run, rate: float
    ) -> tuple[Yardstick, list[dict[str, DocumentLosses]]]:
        """What one model costs and reached, and of each seed its losses by text."""
        seeds = [(self._key(run, rate, seed), partial(self.single, run, rate, seed)) for seed in self.recipe.seeds]
        losses = [{text: own[ALONE] for text, own in self.measured(*seed).items()} for seed in seeds]
        told = Yardstick(
            name=name,
            members=members,
            layers=run.layers,
            costs=self.costs(*seeds[0])[ALONE],
            bits_per_byte={text: tuple(own[text].bits_per_byte for own in losses) for text in self.texts},
        )
        return told, losses

    def outcomes(
        self, cell: Cell, rate: float, beside: Mapping[str, Sequence[Mapping[str, DocumentLosses]]]
    ) -> list[Outcome]:
        """What the compositions of a cell reached, by text and rule."""
        seeds = [
            (f"joined-{cell.name}-{rate:g}-{seed}", partial(self.composed, cell, rate, seed))
            for seed in self.recipe.seeds
        ]
        losses = [self.measured(*seed) for seed in seeds]
        costs = self.costs(*seeds[0])
        shared = self.owned.shared(cell)
        return [
            Outcome(
                text=text,
                rule=spec,
                members=cell.members,
                overlap=cell.overlap,
                shared=shared,
                documents=len(losses[0][text][spec].nats),
                bits_per_byte=tuple(own[text][spec].bits_per_byte for own in losses),
                against=compared(
                    [own[text][spec] for own in losses],
                    [self.own_members(text, cell, own) for own in losses],
                    {name: [own[text] for own in found] for name, found in beside.items()},
                ),
                costs=costs[spec],
            )
            for text in self.texts
            for spec in self.rules
        ]

    def own_members(
        self, text: str, cell: Cell, losses: Mapping[str, Mapping[str, DocumentLosses]]
    ) -> list[DocumentLosses]:
        """The losses of a text's own members: of a kind, its members; of a text from outside, all.

        On all kinds together, each kind is read by a member of its own: by the best one, or by one owner's.
        """
        owners = range(1, cell.members + 1)
        if text in self.recipe.outside:
            return [losses[text][f"{kind}-{owner}"] for kind in self.recipe.kinds for owner in owners]
        kinds = list(self.recipe.kinds) if text == MIXTURE else [text]
        own = [[losses[kind][f"{kind}-{owner}"] for owner in owners] for kind in kinds]
        best = all_together(min(found, key=lambda one: one.nats.sum()) for found in own)
        return [best, *(all_together(each) for each in zip(*own, strict=True))]
