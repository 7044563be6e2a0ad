"""Growth recipes: what ``treering grow`` reads, and the ready plans by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import GrownOn, blocks, dock, gpt_neox
from treering.composition import load_model
from treering.composition.bases import trunk_name
from treering.composition.parts import path
from treering.evaluation import abilities, held_out_texts
from treering.growth import plans
from treering.growth.growing import grow
from treering.growth.plan import Head, Plan, steps
from treering.growth.prefix import Prefix
from treering.growth.stages import GrowthResult
from treering.location import name_of
from treering.recipe import TAG, Schema
from treering.tokenizer import load as load_tokenizer
from treering.training import Backbone, Training
from treering.training.expert import stand_on
from treering.training.run import require_fit, weights_digest
from treering.training.settings import MOST_BLOCKS, BlockCount, Steps

LARGE, FEW = 50_000_000, 20
"""From how many parameters on abilities are measured on few documents, unless the recipe says otherwise; how few."""


class Way(Schema):
    """A ready way of growing, to a depth of one's own; see ``treering.growth.plans``."""

    way: Literal["looped", "copied", "turns", "stacked", "sliding", "revolving", "monolithic"] = "copied"
    depth: BlockCount
    width: BlockCount = Field(2, description="blocks that train at once (not of monolithic)")
    slide: BlockCount = Field(1, description="of sliding: blocks that the window moves up by")
    base: float | None = Field(
        None, ge=0, lt=1, description="of looped, copied, revolving, turns: share of tokens for the blocks that begin"
    )
    low: BlockCount = Field(2, description="of looped, copied: blocks that begin, and come again at every depth")
    head: bool | Head = Field(
        False,
        description="of looped, copied, turns: true: it trains in the lowest blocks' turn alone; frozen: never",
    )
    rounds: int = Field(1, ge=1, le=100, description="of revolving: how often the window goes through the stack")
    turn: Steps = Field(25, description="of looped, copied, turns: steps before the next blocks train")
    budget: int | None = Field(None, ge=1, description="active parameters, never exceeded")

    @model_validator(mode="after")
    def _loops(self) -> Way:
        if self.way in ("looped", "copied") and (self.low >= self.depth or self.base == 0):
            raise ValueError(f"{self.way} wants low to be less than depth, and a base above 0; or say way: turns")
        return self

    def plan(self) -> Plan:
        """The stages of it."""
        depth, width, turn, head = self.depth, self.width, self.turn, self.head is True
        base: dict[str, Any] = {} if self.base is None else {"base": self.base}
        made = {
            "monolithic": lambda: plans.monolithic(depth),
            "stacked": lambda: plans.stacked(depth, width),
            "sliding": lambda: plans.sliding(depth, width, self.slide),
            "revolving": lambda: plans.revolving(depth, width, rounds=self.rounds, **base),
            "turns": lambda: plans.by_turns(depth, width, turn, head=head, **base),
            "looped": lambda: plans.looped(depth, width, turn, head=head, tied=self.low, **base),
            "copied": lambda: plans.copied(depth, width, turn, head=head, low=self.low, **base),
        }[self.way]()
        frozen: dict[str, Any] = {"head": "frozen"} if self.head == "frozen" else {}
        return made.model_copy(update={"budget": self.budget} | frozen)


class Branch(Schema):
    """A branch on a model that exists, whatever its depth; see ``treering.growth.plans.branch``."""

    way: Literal["branch"] = "branch"
    blocks: int | None = Field(
        None, ge=0, le=MOST_BLOCKS, description="new ones on top of the model; 2, or none with from, if not given"
    )
    leave: int = Field(
        0,
        alias="from",
        ge=0,
        le=MOST_BLOCKS,
        description="blocks below the top where the branch leaves the trunk: it has copies of those above, which train",
    )
    head: Head = Field("frozen", description="a frozen head is the model's own, one for all its branches")

    def plan(self, depth: int) -> Plan:
        """The stages of it on a model of so many blocks.

        Raises:
            TreeringError: see ``treering.growth.plans.branch``.
        """
        blocks = (0 if self.leave else 2) if self.blocks is None else self.blocks
        return plans.branch(depth, blocks, self.leave, self.head)


NEW_BLOCKS = {"warmup": 0.1, "keep": "best", "learning_rate": 3e-3, "epochs": 2}
COPIES = NEW_BLOCKS | {"learning_rate": 1e-3, "epochs": 1}
"""What the training of a branch is where its recipe does not say: of new blocks on top, and of copies of the model's
own, which forget by a second pass what the first taught. Found by trying (docs/growth.md, docs/branches.md)."""

PLANS: dict[str, Way | Branch] = {
    "paper-6": Way(way="stacked", depth=6, width=1),
    "paper-9": Way(way="stacked", depth=9, width=3),
    "paper-16": Way(way="stacked", depth=16, width=1),
    "sliding-6": Way(way="sliding", depth=6, width=2, slide=1),
    "revolving-6": Way(way="revolving", depth=6, width=2, base=0.5, rounds=3),
    "revolving-12": Way(way="revolving", depth=12, width=2, base=0.5, rounds=3),
    "looped-6": Way(way="looped", depth=6, width=4, head=True),
    "looped-12": Way(way="looped", depth=12, width=6, head=True),
    "copied-6": Way(way="copied", depth=6, width=4, head=True),
    "copied-12": Way(way="copied", depth=12, width=12, base=0.65),
    "turns-6": Way(way="turns", depth=6, width=2),
    "turns-12": Way(way="turns", depth=12, width=2),
    "shallow-2": Way(way="monolithic", depth=2),
    "monolithic-6": Way(way="monolithic", depth=6),
    "branch": Branch(),
}
"""By name: the paper's (one block at a time to six and to sixteen, three to nine), ours, baselines, a branch."""


def _known_plan(value: Any) -> Any:
    """A ready plan's name to the plan."""
    if not isinstance(value, str):
        return value
    if value not in PLANS:
        raise ValueError(f"there is no plan {value!r}; there are {', '.join(PLANS)}, or write stages of your own")
    return PLANS[value]


def _kind_of_plan(value: Any) -> str:
    fields = value if isinstance(value, dict) else {}
    if isinstance(value, Branch) or fields.get("way") == "branch":
        return TAG + "branch"
    return TAG + ("stages" if isinstance(value, Plan) or "stages" in fields else "way")


PlanField = Annotated[
    Annotated[Way, Tag(TAG + "way")] | Annotated[Branch, Tag(TAG + "branch")] | Annotated[Plan, Tag(TAG + "stages")],
    Discriminator(_kind_of_plan),
    BeforeValidator(_known_plan),
]
"""A plan in a recipe: a ready one's name, a way with its numbers, or stages."""


def as_plan(plan: Way | Branch | Plan, depth: int = 0) -> Plan:
    """The stages of what a recipe calls a plan, for a model that has ``depth`` blocks already.

    Raises:
        TreeringError: it is a branch that does not fit the model.
    """
    if isinstance(plan, Branch):
        return plan.plan(depth)
    return plan.plan() if isinstance(plan, Way) else plan


class GrowthRecipe(Schema):
    """What ``treering grow`` reads: a fresh model on a substrate, or an existing model, and how it grows."""

    ready: ClassVar[Mapping[str, Mapping[str, BaseModel]]] = {"plan": PLANS}

    substrate: str | None = Field(None, description="directory of the substrate of a fresh model, with its tokenizer")
    model: str | None = Field(None, description="or: directory or hub:NAME of a model that grows further")
    data: str = Field(description="directory of the prepared corpus")
    output: str = Field(description="directory of the grown model")
    backbone: Backbone = Field(Backbone(), description="of a fresh model; its depth is the plan's")
    plan: PlanField = Field(PLANS["copied-6"], description="a ready one's name, a way, or stages")
    training: Training = Training(epochs=1)
    prefix: Prefix = "auto"
    prefix_directory: str | None = Field(None, description="of the cache; beside the output if not given")
    abilities: bool | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="measure the model after each stage on what the corpus holds out: true, false, or on so many "
        f"documents and questions of a kind; if not given, all, and {FEW} for more than {LARGE:,} parameters",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_a_branch_trains(cls, values: Any) -> Any:
        """What a branch's training leaves out is what suits a branch, not a model made from nothing."""
        fields = values if isinstance(values, dict) else {}
        plan, training = fields.get("plan"), fields.get("training") or {}
        is_branch = plan == "branch" or _kind_of_plan(plan) == TAG + "branch"
        if not is_branch or not isinstance(training, dict):
            return values
        leaves = plan.leave if isinstance(plan, Branch) else isinstance(plan, dict) and plan.get("from", 0)
        usual = dict(COPIES if leaves else NEW_BLOCKS)
        if "tokens" in training:
            del usual["epochs"]
        return fields | {"training": usual | training}

    @model_validator(mode="after")
    def _one_beginning(self) -> GrowthRecipe:
        if (self.substrate is None) == (self.model is None):
            raise ValueError("give either substrate, for a fresh model, or model, for one that grows further")
        if self.substrate and isinstance(self.plan, Branch):
            raise ValueError(
                "a branch grows on a model that exists, with its vocabulary and its head: give model, not substrate"
            )
        if self.backbone.layers is not None:
            raise ValueError("backbone.layers is not a recipe's to say here: the plan's stages add the blocks")
        return self


@dataclass(frozen=True)
class Beginning:
    """What a recipe begins with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    corpus: corpora.Corpus
    origin: dict[str, Any]


def seedling(
    substrate: substrates.Substrate, tokenizer: PreTrainedTokenizerFast, backbone: Backbone
) -> PreTrainedModel:
    """A model of no block at all, docked on a substrate: embedding, final norm and head, from torch's random state.

    Raises:
        TreeringError: the backbone's width is not the substrate's (see ``treering.backbone.dock``).
    """
    config = gpt_neox(replace(stand_on(substrate, backbone.shape()), layers=0))
    return dock(config, substrate, tokenizer)


def begin(recipe: GrowthRecipe) -> Beginning:
    """Load what the recipe names, or make the fresh model.

    Raises:
        TreeringError: something is not there, is damaged, or does not fit.
    """
    if recipe.substrate:
        substrates.require_substrate(recipe.substrate)
    corpus = corpora.Corpus.load(recipe.data)
    tokenizer = load_tokenizer(recipe.substrate or recipe.model or "")
    origin: dict[str, Any] = {
        "corpus": corpus.fingerprint,
        "sources": [source.name for source in corpus.manifest.sources],
        "data": corpus.manifest.model_dump(mode="json"),
    }
    if recipe.substrate:
        substrate = substrates.load(recipe.substrate)
        set_seed(recipe.training.seed)
        model = seedling(substrate, tokenizer, recipe.backbone)
        origin["substrate"] = substrate.fingerprint
    else:
        assert recipe.model
        model = load_model(recipe.model, dtype=torch.float32)  # what trains in less learns little
        note_trunk(model, recipe)
        origin["model"] = recipe.model
        origin["weights"] = weights_digest(model)  # a directory may hold another model by the time a run goes on
    require_fit(model, corpus, tokenizer)
    return Beginning(model, tokenizer, corpus, origin | {"backbone": model.config.to_dict()})


def note_trunk(model: PreTrainedModel, recipe: GrowthRecipe) -> None:
    """Write into a model's configuration how much of it no stage of the recipe trains: what its branches share.

    Raises:
        TreeringError: the plan does not fit the model.
    """
    assert recipe.model
    depth = len(blocks(model))
    below = min(step.below for step in steps(as_plan(recipe.plan, depth), depth))
    model.config.treering_trunk = None  # of a branch that grows further, what it stood on itself is in that
    if shared := min(below, depth):
        names = path(model.config, model.state_dict())
        known = {}
        if names:
            trunk = trunk_name(names["blocks"][:shared])
            known = {"trunk": trunk, "embedding": names["embedding"], "head": names["head"]}
        model.config.treering_trunk = GrownOn(base=name_of(recipe.model), blocks=shared, **known).model_dump()


def measured(asked: bool | int | None, model: PreTrainedModel) -> int | None:
    """How many documents and questions abilities are measured on at most, as a recipe asks; None for all."""
    if asked is None:
        return FEW if model.num_parameters() > LARGE else None
    return None if isinstance(asked, bool) else asked


def grow_recipe(
    recipe: GrowthRecipe,
    console: Console | None = None,
    begun: Beginning | None = None,
    draw: Callable[[GrowthResult], bytes] | None = None,
) -> GrowthResult:
    """Run a growth recipe; see ``treering.growth.grow``.

    Args:
        begun: what `begin` made of the recipe, if it is there already.
        draw: see ``treering.growth.grow``.

    Raises:
        TreeringError: see `begin` and ``treering.growth.grow``.
    """
    found = begun or begin(recipe)
    texts = {} if recipe.abilities is False else held_out_texts([recipe.data])
    most = measured(recipe.abilities, found.model)

    def measure(model: PreTrainedModel) -> list[Any]:
        if console and most:
            console.print(
                f"  measuring abilities on {most} documents and questions of a kind (see abilities in a recipe)"
            )
        return abilities(Path(recipe.output).name, model, found.tokenizer, texts, most, console)

    return grow(
        found.model,
        found.tokenizer,
        found.corpus,
        os.fspath(recipe.output),
        as_plan(recipe.plan, len(blocks(found.model))),
        recipe.training,
        recipe.prefix,
        recipe.prefix_directory,
        None if recipe.abilities is False else measure,
        found.origin,
        console,
        draw,
    )
