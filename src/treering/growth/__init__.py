"""Growth of deep models by stages on a frozen core (paper section 5)."""

from treering.growth.blocks import deepen
from treering.growth.growing import grow
from treering.growth.plan import Lora, Plan, Stage, Turns
from treering.growth.plans import branch, by_turns, copied, looped, monolithic, revolving, sliding, stacked
from treering.growth.recipe import PLANS, GrowthRecipe, grow_recipe, seedling
from treering.growth.stages import GrowthResult, StageResult
from treering.growth.surveying import survey
from treering.training.order import reading_order

__all__ = [
    "PLANS",
    "GrowthRecipe",
    "GrowthResult",
    "Lora",
    "Plan",
    "Stage",
    "StageResult",
    "Turns",
    "branch",
    "by_turns",
    "copied",
    "deepen",
    "grow",
    "grow_recipe",
    "looped",
    "monolithic",
    "reading_order",
    "revolving",
    "seedling",
    "sliding",
    "stacked",
    "survey",
]
