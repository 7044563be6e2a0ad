"""What a plan will cost, counted before anything runs: parameters, optimiser memory, FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from treering import backbone
from treering.errors import TreeringError
from treering.growth.blocks import fresh_model
from treering.growth.plan import Lora, Plan, Step, blocks_text, trained_text

ADAM, GRADIENT = 8, 4
"""Bytes that Adam keeps for each parameter that trains (two running means in float32), and those of its gradient."""


@dataclass(frozen=True)
class Shape:
    """Parameters of a model's parts, and what FLOPs follow from.

    Attributes:
        embedding: with what a family adds to it.
        linear: (inputs, outputs) of each linear layer of a block, by the layer's name.
        met: numbers of a block's matrices that a token is multiplied by.
        tied: the head is the embedding, until it trains.
    """

    embedding: int
    block: int
    linear: tuple[tuple[str, int, int], ...]
    met: int
    norm: int
    head: int
    width: int
    positions: int
    tied: bool = False

    def lora(self, settings: Lora) -> int:
        """Parameters of the low-rank updates of one block."""
        return sum(
            settings.rank * (inputs + outputs)
            for name, inputs, outputs in self.linear
            if settings.targets is None or name in settings.targets
        )

    @property
    def linear_flops(self) -> int:
        """FLOPs of a forward pass for a token through a block's linear layers."""
        return 2 * self.met

    @property
    def attention_flops(self) -> int:
        """FLOPs of a block's attention for a token, to half a block of text on average."""
        return 2 * self.positions * self.width

    @property
    def block_flops(self) -> int:
        """FLOPs of a block's forward pass for a token."""
        return self.linear_flops + self.attention_flops

    @property
    def head_flops(self) -> int:
        """FLOPs of the head's forward pass for a token."""
        return 2 * self.head


@dataclass(frozen=True)
class StageCost:
    """One stage, counted.

    Attributes:
        active: parameters that train at once, at most; each has a gradient.
        trained: parameters that train at some time of the stage. By turns they are more than train at once, and Adam
            keeps its state of all of them.
        flops: of all the stage's tokens, with the prefix recomputed.
        prefix_flops: the part of them that a cache of the prefix saves, and does not spend.
    """

    step: Step
    tokens: int
    total: int
    active: int
    trained: int
    flops: float
    prefix_flops: float

    @property
    def frozen(self) -> int:
        """Parameters that do not change in this stage."""
        return self.total - self.trained

    @property
    def optimiser(self) -> float:
        """MiB of Adam's state on the device: of what trains at once."""
        return self.active * ADAM / 2**20

    @property
    def optimiser_host(self) -> float:
        """MiB of Adam's state in the host's memory: of what waits for its turn."""
        return (self.trained - self.active) * ADAM / 2**20

    @property
    def gradients(self) -> float:
        """MiB of gradients, in float32."""
        return self.active * GRADIENT / 2**20


def shape_of(config: PreTrainedConfig, positions: int) -> Shape:
    """Count the parts of a model of this configuration, whatever its depth, without making it."""
    with torch.device("meta"):
        model = fresh_model(config, 1)
    block = backbone.blocks(model)[0]
    layers = [(name.rpartition(".")[2], module) for name, module in backbone.linear_layers(block).items()]
    linear = [(n, *(m.weight.shape if isinstance(m, Conv1D) else reversed(m.weight.shape))) for n, m in layers]
    head = config.vocab_size * config.hidden_size
    added = sum(p.numel() for _, p in backbone.below_blocks(model)) - _size(backbone.embedding(model))
    return Shape(
        embedding=head + added,
        block=_size(block),
        linear=tuple(linear),
        met=backbone.numbers_a_token(block, config),
        norm=_size(backbone.final_norm(model)),
        head=head,
        width=config.hidden_size,
        positions=positions,
        tied=bool(config.tie_word_embeddings),
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count(
    steps: Sequence[Step], tokens: Sequence[int], shape: Shape, embedding_trains: bool = False
) -> list[StageCost]:
    """The cost of every stage.

    A forward pass goes through all blocks; gradients of activations go down to the lowest block that trains, on
    average where blocks train by turns, through attention at twice its forward price (both factors of its products are
    activations); gradients of weights are taken where something trains. Tied blocks compute as often as they stand, and
    are parameters once.

    Args:
        tokens: of each stage.
        embedding_trains: in the first stage, after which it is frozen.
    """
    costs = []
    kept_tied = shape.tied and all(step.stage.head == "frozen" for step in steps)
    for step, length in zip(steps, tokens, strict=True):
        windows, lora, leaders = step.stage.windows() or [()], step.stage.lora, step.stage.leaders()
        adapted = step.depth - len(step.stage.trained) if lora else 0
        table = shape.embedding if embedding_trains and step.number == 1 else 0
        updates = adapted * shape.lora(lora) if lora else 0
        apart = [len({leaders[block] for block in window}) for window in windows]
        frozen = step.stage.head == "frozen"
        heads = [step.stage.head_trains(window) for window in windows]
        top = shape.norm + (0 if frozen else shape.head)
        active = updates + table + max(a * shape.block + h * top for a, h in zip(apart, heads, strict=True))
        trained = updates + table + len(set(leaders.values())) * shape.block + top
        lowest = [0] if lora else [min(window, default=step.depth + 1) - 1 for window in windows]
        passed, weighed = step.depth - statistics.mean(lowest), statistics.mean(map(len, windows))
        a_token = (
            step.depth * shape.block_flops
            + passed * (shape.linear_flops + 2 * shape.attention_flops)
            + weighed * shape.linear_flops
            + 4 * updates
            + (2 + (0 if frozen else statistics.mean(heads))) * shape.head_flops
        )
        costs.append(
            StageCost(
                step=step,
                tokens=length,
                total=shape.embedding + step.depth * shape.block + shape.norm + (0 if kept_tied else shape.head),
                active=active,
                trained=trained,
                flops=float(a_token * length),
                prefix_flops=0.0 if table else float(step.below * shape.block_flops * length),
            )
        )
    return costs


def cache_flops(costs: Sequence[StageCost], tokens: int, shape: Shape) -> float:
    """FLOPs of having the prefix cached for every stage: rolled forward from what is still valid, each token once.

    Args:
        tokens: that the cache holds.
    """
    valid, blocks = set[int](), 0
    for step in (cost.step for cost in costs):
        if step.below and step.below not in valid:
            blocks += step.below - max((depth for depth in valid if depth < step.below), default=0)
            valid.add(step.below)
        valid = {depth for depth in valid if depth <= step.below}  # what lies above a block that trained is stale
    return float(blocks * shape.block_flops * tokens)


def require_budget(plan: Plan, costs: Sequence[StageCost]) -> None:
    """Check that no stage trains more than the plan's budget.

    Raises:
        TreeringError: one does; names what its parts need.
    """
    for cost in costs:
        if plan.budget is not None and cost.active > plan.budget:
            raise TreeringError(
                f"Stage {cost.step.number} trains {cost.active:,} parameters ({_active_parts(cost.step)}), more than "
                f"the plan's budget of {plan.budget:,}. Let fewer blocks train at once, or raise the budget."
            )


def _active_parts(step: Step) -> str:
    parts = [f"block {trained_text(step.stage)}"] if step.stage.trained else []
    return ", ".join([*parts, "final norm", *(["head"] if step.stage.head == "trained" else [])])


def as_rows(costs: Sequence[StageCost]) -> list[dict[str, Any]]:
    """The stages as machines read them; memory in MiB."""
    return [
        {
            "stage": cost.step.number,
            "blocks": cost.step.depth,
            "new": blocks_text(cost.step.stage.new),
            "train": trained_text(cost.step.stage),
            "start": cost.step.stage.start if cost.step.stage.new else None,
            "tokens": cost.tokens,
            "total": cost.total,
            "frozen": cost.frozen,
            "trained": cost.trained,
            "at_once": cost.active,
            "adam": cost.optimiser,
            "adam_host": cost.optimiser_host,
            "gradients": cost.gradients,
            "flops": cost.flops,
        }
        for cost in costs
    ]


def as_brief_table(costs: Sequence[StageCost]) -> Table:
    """The stages in 80 columns: short numbers, and Adam and the gradients on the device as one."""
    table = Table("stage", "blocks", "new", box=None, padding=(0, 1, 0, 0))
    table.add_column("train", max_width=14)
    table.add_column("start")
    for name in ("tokens", "total", "trained", "at once", "MiB", "TFLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            *_place(cost),
            *(_brief(number) for number in (cost.tokens, cost.total, cost.trained, cost.active)),
            f"{cost.optimiser + cost.gradients:,.0f}",
            f"{cost.flops / 1e12:,.1f}",
        )
    return table


def _place(cost: StageCost) -> tuple[str, ...]:
    """Which stage it is, how deep, what is new, what trains, and how the new begins."""
    stage = cost.step.stage
    begins = stage.start if stage.new else "–"
    named = blocks_text(stage.new) or "–", trained_text(stage) or "–"
    return f"{cost.step.number}", f"{cost.step.depth}", *named, begins


def _brief(number: float) -> str:
    """Three digits and k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def as_table(costs: Sequence[StageCost]) -> Table:
    """The stages as people read them before a run."""
    table = Table("stage", "blocks", "new", "train", "start", box=None)
    for name in ("tokens", "total", "frozen", "train", "at once", "Adam MiB", "gradients MiB", "TFLOPs"):
        table.add_column(name, justify="right", overflow="fold")
    for cost in costs:
        table.add_row(
            *_place(cost),
            *(f"{number:,}" for number in (cost.tokens, cost.total, cost.frozen, cost.trained, cost.active)),
            f"{cost.optimiser:,.1f}" + (f" + {cost.optimiser_host:,.1f} host" if cost.optimiser_host else ""),
            f"{cost.gradients:,.1f}",
            f"{cost.flops / 1e12:,.2f}",
        )
    return table
