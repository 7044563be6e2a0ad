"""The rows of the reproduction: what trains, on which text, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from treering.backbone import gpt_neox
from treering.evaluation.owned_texts import WHOLE, Cell
from treering.growth import plans
from treering.growth.cost import Shape, shape_of
from treering.growth.plan import Lora, Plan, Stage
from treering.growth.study import Row, counted, flops
from treering.reproduction.recipe import ReproductionRecipe
from treering.substrate.substrate import Kind

KINDS: tuple[Kind, ...] = ("glyph", "code", "random", "trainable")

MONOLITHIC, SHALLOW, STACKED, COPIED = "monolithic, glyph", "shallow, glyph", "stacked, glyph", "copied, glyph"
STACKED_CODE, STACKED_LORA, STACKED_COMPUTE = "stacked, code", "stacked and LoRA, glyph", "stacked, glyph, equal FLOPs"


@dataclass(frozen=True)
class Expert:
    """One member of the compositions: what it is called, its row, and the parts of the texts that it reads."""

    name: str
    row: Row
    reads: Mapping[str, tuple[Cell, int]]


def rows(recipe: ReproductionRecipe) -> list[Row]:
    """The rows that read all texts: four interfaces, and ways to depth on the same interface."""
    depth, width, whole, shape = recipe.depth, recipe.width, recipe.tokens, shape_for(recipe)
    stacked = plans.stacked(depth, width)
    equal = round(whole * flops(plans.monolithic(depth), whole, shape) / flops(stacked, whole, shape))
    return [
        *(Row(f"monolithic, {kind}", kind, plans.monolithic(depth), whole) for kind in KINDS),
        Row(SHALLOW, "glyph", plans.monolithic(width), whole),
        Row(STACKED, "glyph", stacked, whole),
        Row(STACKED_CODE, "code", stacked, whole),
        Row(STACKED_LORA, "glyph", stacked_with_lora(depth, width, recipe.lora), whole),
        Row(STACKED_COMPUTE, "glyph", stacked, equal),
        Row(COPIED, "glyph", plans.copied(depth, _at_once(depth, width, shape), head=True, low=width), whole),
    ]


def _at_once(depth: int, width: int, shape: Shape) -> int:
    """The most blocks that train by turns in the budget of ``width`` blocks and the head, the head in the lowest's."""
    budget = width * shape.block + shape.head
    return max(
        many
        for many in range(1, depth)
        if many == width or (many * shape.block <= budget and (depth % many or many) <= width)
    )


def stacked_with_lora(depth: int, width: int, rank: int) -> Plan:
    """The paper's way with its optional phases: after each stage but the first, low-rank updates of all blocks.

    A phase reads half as many tokens as a stage that adds blocks (our choice; the paper does not state its lengths).
    """
    stages = depth // width
    share = 1 / (stages + (stages - 1) / 2)
    made = []
    for low in range(1, depth + 1, width):
        made.append(Stage(new=tuple(range(low, low + width)), start="random", share=share))
        if low > 1:
            made.append(Stage(train=(), lora=Lora(rank=rank), share=share / 2))
    return Plan(stages=tuple(made))


def experts(recipe: ReproductionRecipe) -> list[Expert]:
    """One expert for each specialist's text with its part of the shared one, and one of the shared text alone."""
    cell, plan = Cell(len(recipe.specialists), 0.0), plans.monolithic(recipe.depth)
    reads: dict[str, Mapping[str, tuple[Cell, int]]] = {
        name: {name: (WHOLE, 1), recipe.common: (cell, part)} for part, name in enumerate(recipe.specialists, 1)
    }
    reads[recipe.common] = {recipe.common: (WHOLE, 1)}
    return [Expert(name, Row(f"expert {name}", "glyph", plan, recipe.tokens), own) for name, own in reads.items()]


def shape_for(recipe: ReproductionRecipe) -> Shape:
    """What parameters and FLOPs follow from."""
    backbone = replace(recipe.backbone.shape(), vocab_size=recipe.vocab_size)
    return shape_of(gpt_neox(backbone), backbone.context)


@dataclass(frozen=True)
class Cost:
    """What a row holds and costs: parameters in all and that train at once, and FLOPs of one of its runs."""

    row: Row
    total: int
    active: int
    flops: float


def expected(recipe: ReproductionRecipe) -> list[Cost]:
    """What every row will cost, before anything is made."""
    shape, found = shape_for(recipe), []
    for row in [*rows(recipe), *(expert.row for expert in experts(recipe))]:
        stages = counted(row.plan, row.tokens, shape, row.kind)
        costs = max(cost.total for cost in stages), max(cost.active for cost in stages)
        found.append(Cost(row, *costs, sum(cost.flops for cost in stages)))
    return found
