"""The continual study: tasks arrive one after another, and after each of them every task is measured.

Branches that are joined by evidence, against ways to train on and on, to average, to keep whole models, and the bound
that nobody has who cannot pool the texts. All that trains has about the same number of parameters (whole models
apart) and reads the same tokens of each task; each way has the rate that the same search chose for it on pages set
apart.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from peft.utils.merge_utils import task_arithmetic, ties
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering import backbone
from treering import corpus as corpora
from treering.composition import compose, fit, load_model
from treering.errors import TreeringError
from treering.evaluation import DocumentLosses, document_losses, held_out_texts
from treering.evaluation.continual import Matrix, average, backward_transfer, forgetting, resampled_averages
from treering.evaluation.costs import milliseconds
from treering.evaluation.search import best_rate
from treering.growth.cost import shape_of
from treering.growth.plan import Lora, Plan, Stage
from treering.growth.recipe import Beginning, Branch, GrowthRecipe, begin, grow_recipe
from treering.output import locked, require_common, write_file
from treering.recipe import Schema, Seed
from treering.tokenizer import load as load_tokenizer
from treering.training import Training
from treering.training.run import weights_digest
from treering.training.unfinished import is_complete

Unit = Literal["branch", "blocks", "lora", "lora on", "whole", "joint"]
"""What trains: a branch for each task; its blocks on and on; low-rank updates for each task; those on and on; all
blocks of a copy for each task; one branch on all tasks together."""

Method = Literal[
    "branches, evidence",
    "branches, gate",
    "branches, task known",
    "branch in sequence",
    "LoRA in sequence",
    "LoRA averaged, linear",
    "LoRA averaged, TIES",
    "LoRA each, evidence",
    "whole models, task known",
    "all tasks together",
]

UNITS: dict[Method, Unit] = {
    "branches, evidence": "branch",
    "branches, gate": "branch",
    "branches, task known": "branch",
    "branch in sequence": "blocks",
    "LoRA in sequence": "lora on",
    "LoRA averaged, linear": "lora",
    "LoRA averaged, TIES": "lora",
    "LoRA each, evidence": "lora",
    "whole models, task known": "whole",
    "all tasks together": "joint",
}
Make = Callable[[], PreTrainedModel]

ON_AND_ON: tuple[Unit, ...] = ("blocks", "lora on")
"""Units that train the same numbers on every task, one after the other."""

EVIDENCE, GATE = "evidence", "gate:switch=0.01"
DENSITY = 0.2
"""Share of the largest changes that TIES keeps, as its authors do (Yadav et al. 2023)."""


class ContinualRecipe(Schema):
    """What ``treering study continual`` reads."""

    model: str = Field(description="directory or hub:NAME of the base")
    tasks: dict[str, str] = Field(description="by name, prepared corpora, each with a share for calibration")
    orders: tuple[tuple[str, ...], ...] = Field((), description="in which tasks arrive; as they are listed by default")
    output: str = Field(description="directory of the study: runs that are there are not made again")
    branch: Branch = Branch()
    training: Training = Field(description="on each task; the rate is searched")
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-3, 3e-3, 1e-2), min_length=1)
    seeds: tuple[Seed, ...] = Field((0, 1), min_length=1)
    methods: tuple[Method, ...] = Field(get_args(Method), min_length=1)
    documents: int | None = Field(None, ge=2, description="held-out documents of each task; all if not given")

    @model_validator(mode="after")
    def _orders_of_tasks(self) -> ContinualRecipe:
        if len(self.tasks) < 2:
            raise ValueError("tasks that arrive one after another are two at least")
        for order in self.orders:
            if sorted(order) != sorted(self.tasks):
                raise ValueError(f"the order {', '.join(order)} does not name every task once")
        return self

    @property
    def all_orders(self) -> tuple[tuple[str, ...], ...]:
        """The orders, at least one."""
        return self.orders or (tuple(self.tasks),)


@dataclass(frozen=True)
class Result:
    """What one method reached, over all orders and seeds.

    Attributes:
        rate: the learning rate that was chosen for what it trains.
        average: bits per byte at the end, mean over the tasks, with its 95% interval over documents.
        change: of the average, relative to branches by evidence, with the interval of a paired bootstrap.
        transfer, forgetting: see ``treering.evaluation.continual``.
        trained: parameters that train for a task; ``stored``: that are kept in the end.
        milliseconds: of a decoding step at the end.
        matrices: bits per byte, by order and seed.
    """

    method: Method
    rate: float
    average: float
    low: float
    high: float
    change: tuple[float, float, float] | None
    transfer: float
    forgetting: float
    trained: int
    stored: int
    milliseconds: float
    matrices: dict[str, Matrix]


def continual(recipe: ContinualRecipe, console: Console | None = None) -> list[Result]:
    """Search, train, measure and compare; an interrupted study goes on where it stopped.

    Leaves ``continual.json`` in the output, in ``runs`` every run, in ``measured`` what it reached.

    Raises:
        TreeringError: a corpus sets no pages apart, does not fit the model, what is in the output is of another base,
            other corpora or another training, all rates diverged, or another process makes this study; see also
            ``treering.growth.grow``.
    """
    console = console or Console()
    for task, place in recipe.tasks.items():
        manifest = corpora.load_manifest(place)
        if not manifest.calibration.documents or not manifest.validation.documents:
            raise TreeringError(
                f"The corpus of {task}, {place}, sets no documents apart to choose rates on and to measure on. Prepare "
                "it again with --validation 0.1 --calibration 0.1, say."
            )
    with locked(recipe.output):
        study = _Study(recipe, console)
        study.claim()
        return study.results()


class _Study:
    """What all methods of a study share: the base, the texts, the runs that were made."""

    def __init__(self, recipe: ContinualRecipe, console: Console) -> None:
        self.recipe, self.console, self.output = recipe, console, Path(recipe.output)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(recipe.model)
        self.base = load_model(recipe.model, dtype=torch.float32)
        self.held_out, self.apart = (
            {
                task: [text for found in held_out_texts([place], split).values() for text in found][: recipe.documents]
                for task, place in recipe.tasks.items()
            }
            for split in ("validation", "calibration")
        )

    def claim(self) -> None:
        """Note what all runs have in common; more orders, seeds, rates and methods may come later.

        Raises:
            TreeringError: the runs that are there have something else in common.
        """
        recipe = self.recipe
        own = {
            "model": weights_digest(self.base),
            "tasks": {task: corpora.load_manifest(place).train.sha256 for task, place in recipe.tasks.items()},
            "branch": recipe.branch.model_dump(mode="json", by_alias=True),
            "training": recipe.training.model_dump(mode="json", exclude={"learning_rate", "seed"}),
            "documents": recipe.documents,
        }
        require_common(self.output / "study.json", own)

    def results(self) -> list[Result]:
        """Every method's, in the recipe's order."""
        methods = self.recipe.methods
        best = {unit: self.rate(unit) for unit in dict.fromkeys(UNITS[method] for method in methods)}
        ends: dict[Method, list[Mapping[str, DocumentLosses]]] = {}
        matrices: dict[Method, dict[str, Matrix]] = {}
        for method in methods:
            self.console.print(f"[bold]{method}[/]", highlight=False)
            ends[method], matrices[method] = [], {}
            for order in self.recipe.all_orders:
                for seed in self.recipe.seeds:
                    rows = self.rows(method, order, best[UNITS[method]], seed)
                    ends[method].append({task: rows[-1][task] for task in self.recipe.tasks})
                    matrices[method][f"{', '.join(order)}; seed {seed}"] = [
                        {task: losses.score().bits_per_byte for task, losses in row.items()} for row in rows
                    ]
        drawn = {method: resampled_averages(found) for method, found in ends.items()}
        found = []
        for method in methods:
            own = list(zip(self._orders(), matrices[method].values(), strict=True))
            low, high = np.quantile(drawn[method], [0.025, 0.975])
            trained, stored = self.parameters(method)
            found.append(
                Result(
                    method=method,
                    rate=best[UNITS[method]],
                    average=statistics.mean(average(matrix) for _, matrix in own),
                    low=float(low),
                    high=float(high),
                    change=self._change(method, own, matrices, drawn),
                    transfer=statistics.mean(backward_transfer(order, matrix) for order, matrix in own),
                    forgetting=statistics.mean(forgetting(order, matrix) for order, matrix in own),
                    trained=trained,
                    stored=stored,
                    milliseconds=self.milliseconds(method, best[UNITS[method]]),
                    matrices=matrices[method],
                )
            )
        write_file(self.output / "continual.json", json.dumps([asdict(result) for result in found], indent=1))
        return found

    def _orders(self) -> list[tuple[str, ...]]:
        return [order for order in self.recipe.all_orders for _ in self.recipe.seeds]

    def _change(
        self,
        method: Method,
        own: Sequence[tuple[Sequence[str], Matrix]],
        matrices: Mapping[Method, Mapping[str, Matrix]],
        drawn: Mapping[Method, np.ndarray],
    ) -> tuple[float, float, float] | None:
        first: Method = "branches, evidence"
        if method == first or first not in matrices:
            return None
        reference = statistics.mean(average(matrix) for matrix in matrices[first].values())
        low, high = np.quantile(drawn[method] / drawn[first] - 1, [0.025, 0.975])
        return statistics.mean(average(matrix) for _, matrix in own) / reference - 1, float(low), float(high)

    def rate(self, unit: Unit) -> float:
        """The learning rate with which a unit reaches the fewest bits on the pages set apart, with the first seed.

        The search goes on beyond the recipe's rates as long as the best one stands at an end. Of what trains for a
        task, it looks at the first task; of what trains on and on, and of all tasks together, at the mean over the
        tasks at the end.
        """
        order, seed = self.recipe.all_orders[0], self.recipe.seeds[0]
        tasks = sorted(self.recipe.tasks) if unit == "joint" else order if unit in ON_AND_ON else order[:1]

        def bits(rate: float) -> float:
            key, make = f"apart-{self._key(unit, tasks, rate, seed)}", partial(self.trained, unit, tasks, rate, seed)
            losses = [self.losses(key, make, task, self.apart) for task in tasks]
            return statistics.mean(own.bits_per_byte for own in losses)

        return best_rate(unit, self.recipe.rates, bits, self.console)

    def rows(self, method: Method, order: Sequence[str], rate: float, seed: int) -> list[dict[str, DocumentLosses]]:
        """Losses on every task before the first and after each arrival."""
        return [
            {task: self.losses(*self.speaker(method, order, arrived, task, rate, seed), task) for task in order}
            for arrived in range(len(order) + 1)
        ]

    def speaker(
        self, method: Method, order: Sequence[str], arrived: int, task: str, rate: float, seed: int
    ) -> tuple[str, Make]:
        """The model that a method has for a task when so many have arrived: what it is called, and how it is made."""
        unit, known = UNITS[method], order[:arrived]
        told = method.endswith("task known")
        if not known or (told and task not in known):
            return "base", lambda: self.base
        if told or unit in ON_AND_ON or unit == "joint":
            # All together is one model, whatever has arrived and in which order.
            tasks = [task] if told else sorted(self.recipe.tasks) if unit == "joint" else known
            return self._key(unit, tasks, rate, seed), partial(self.trained, unit, tasks, rate, seed)
        known = sorted(known)
        return f"{method}-{self._key(unit, known, rate, seed)}", partial(self.joined, method, known, rate, seed)

    def trained(self, unit: Unit, tasks: Sequence[str], rate: float, seed: int) -> PreTrainedModel:
        """The model that a run leaves, which is made if it is not there yet."""
        return load_model(self.run(unit, tasks, rate, seed))

    def joined(self, method: Method, known: Sequence[str], rate: float, seed: int) -> PreTrainedModel:
        """One model of what was trained for some tasks."""
        models = {task: self.trained(UNITS[method], [task], rate, seed) for task in known}
        if method.startswith("LoRA averaged"):
            return averaged(self.base, list(models.values()), method.endswith("TIES"))
        model = compose({"base": self.base} | models, EVIDENCE, across_substrates=True)
        if method == "branches, gate":
            fit(model, self.tokenizer, {task: self.apart[task] for task in known}, GATE)
        return model

    def losses(
        self,
        key: str,
        make: Make,
        task: str,
        texts: Mapping[str, Sequence[str]] | None = None,
    ) -> DocumentLosses:
        """Losses of a model on a task's held-out documents, or on those of ``texts``; kept in ``measured``."""
        path = self.output / "measured" / f"{key}" / f"{task}.json"
        if not path.exists():
            if self._made[0] != key:
                self._made = key, make()
            found = document_losses(self._made[1], self.tokenizer, (texts or self.held_out)[task])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps({"nats": found.nats.tolist(), "bytes": found.bytes.tolist()}))
        kept = json.loads(path.read_text())
        return DocumentLosses(np.array(kept["nats"]), np.array(kept["bytes"]))

    _made: tuple[str, Any] = ("", None)  # the last model, which is asked about one task after the other

    def run(self, unit: Unit, tasks: Sequence[str], rate: float, seed: int) -> Path:
        """The directory of a run, made if it is not there yet; what trains on and on begins with the one before."""
        place = self.output / "runs" / self._key(unit, tasks, rate, seed)
        if is_complete(place):
            return place
        before = self.recipe.model
        if unit in ON_AND_ON and len(tasks) > 1:
            before = os.fspath(self.run(unit, tasks[:-1], rate, seed))
        settings = self.recipe.training.model_copy(update={"learning_rate": rate, "seed": seed})
        recipe = GrowthRecipe(
            model=before,
            data=self.recipe.tasks[tasks[-1]],
            output=os.fspath(place),
            plan=self.plan(unit, first=len(tasks) == 1),
            training=settings,
            abilities=False,
        )
        begun = begin(recipe)
        if unit == "joint":
            recipe, begun = self._pooled(recipe, begun, tasks)
        grow_recipe(recipe, self.console, begun)
        return place

    def _pooled(self, recipe: GrowthRecipe, begun: Beginning, tasks: Sequence[str]) -> tuple[GrowthRecipe, Beginning]:
        """A run on all tasks' texts together, for as many tokens as all of them together are read elsewhere."""
        found = [corpora.Corpus.load(self.recipe.tasks[task]) for task in tasks]
        each = [self.tokens(corpus) // corpus.manifest.block_size for corpus in found]
        trains: list[Any] = [corpus.train for corpus in found]
        rows: list[Any] = [
            Subset(train, [row % len(train) for row in range(count)]) for train, count in zip(trains, each, strict=True)
        ]
        blocks: Any = ConcatDataset(rows)  # a run shuffles what it reads
        block = found[0].manifest.block_size
        training = recipe.training.model_copy(update={"tokens": sum(each) * block, "epochs": None})
        pooled = replace(begun.corpus, train=blocks)
        origin = begun.origin | {"pooled": [corpus.fingerprint for corpus in found]}
        return recipe.model_copy(update={"training": training}), replace(begun, corpus=pooled, origin=origin)

    def tokens(self, corpus: corpora.Corpus) -> int:
        """Tokens that are read of a task."""
        training = self.recipe.training
        return training.tokens or round((training.epochs or 0) * corpus.manifest.train.tokens)

    def plan(self, unit: Unit, first: bool = True) -> Plan:
        """How a unit trains."""
        depth = len(backbone.blocks(self.base))
        grown = self.recipe.branch.plan(depth)
        if unit in ("branch", "joint") or (unit == "blocks" and first):
            return grown
        if unit == "blocks":
            return Plan(stages=(Stage(train=grown.stages[0].trained, share=1.0),), head=grown.head)
        if unit == "whole":
            return Plan(stages=(Stage(train=tuple(range(1, depth + 1)), share=1.0),))
        return Plan(stages=(Stage(train=(), lora=Lora(rank=self.rank()), share=1.0),), head="frozen")

    def rank(self) -> int:
        """Of LoRA on every linear layer of the base's blocks, so that as many numbers train as in a branch."""
        return max(1, round(self._branch_size() / self._rank_size()))

    def _rank_size(self) -> int:
        """Parameters of LoRA for each rank."""
        sides = sum(rows + columns for _, rows, columns in shape_of(self.base.config, 1).linear)
        return sides * len(backbone.blocks(self.base))

    def _branch_size(self) -> int:
        block = sum(parameter.numel() for parameter in backbone.blocks(self.base)[-1].parameters())
        head = backbone.head(self.base).weight.numel() if self.recipe.branch.head == "trained" else 0
        norm = sum(parameter.numel() for parameter in backbone.final_norm(self.base).parameters())
        return block * len(self.plan("branch").stages[0].trained) + norm + head

    def parameters(self, method: Method) -> tuple[int, int]:
        """That train for a task, and that are kept when all tasks have arrived."""
        whole, tasks, branch = self.base.num_parameters(), len(self.recipe.tasks), self._branch_size()
        unit = UNITS[method]
        lora = self.rank() * self._rank_size()
        trained = {"whole": whole, "lora": lora, "lora on": lora}.get(unit, branch)
        if unit == "whole":
            return trained, whole * tasks
        copies = tasks if unit == "branch" or method == "LoRA each, evidence" else 1
        return trained, whole if unit in ("lora on",) or "averaged" in method else whole + trained * copies

    def milliseconds(self, method: Method, rate: float) -> float:
        """Median of 16 decoding steps at the end of the first order."""
        order, seed = self.recipe.all_orders[0], self.recipe.seeds[0]
        path = self.output / "measured" / f"{method}.ms.json"
        if not path.exists():
            _, make = self.speaker(method, order, len(order), order[0], rate, seed)
            write_file(path, json.dumps(milliseconds(make())))
        return float(json.loads(path.read_text()))

    def _key(self, unit: Unit, tasks: Sequence[str], rate: float, seed: int) -> str:
        return f"{unit.replace(' ', '-')}-{'+'.join(tasks)}-{rate:g}-{seed}"


def averaged(base: PreTrainedModel, models: Sequence[PreTrainedModel], by_ties: bool) -> PreTrainedModel:
    """The base with the mean of what some models changed of its weights, or with what TIES makes of the changes.

    The functions are those that peft's ``add_weighted_adapter`` calls, on whole updates instead of on their factors.
    """
    merged, weights = copy.deepcopy(base), torch.full((len(models),), 1 / len(models))
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, tensor in merged.state_dict().items():
            changes = [state[name] - tensor for state in states]
            if any(change.any() for change in changes):
                tensor += _merged(changes, weights, by_ties)
    return merged


def _merged(changes: list[Tensor], weights: Tensor, by_ties: bool) -> Tensor:
    return ties(changes, weights * len(changes), DENSITY) if by_ties else task_arithmetic(changes, weights)


def as_continual_table(found: Sequence[Result]) -> Table:
    """The results as people read them."""
    table = Table("bits per byte, mean over tasks", box=None)
    for column in ("rate", "at the end", "than by evidence", "transfer", "forgetting", "trained", "stored", "ms/token"):
        table.add_column(column, justify="right")
    for one in found:
        than = "" if one.change is None else "{:+.1%} ({:+.1%} … {:+.1%})".format(*one.change)
        table.add_row(
            one.method,
            f"{one.rate:g}",
            f"{one.average:.3f} ({one.low:.3f}–{one.high:.3f})",
            than,
            f"{one.transfer:+.1%}",
            f"{one.forgetting:.1%}",
            f"{one.trained:,}",
            f"{one.stored:,}",
            f"{one.milliseconds:.1f}",
        )
    return table
