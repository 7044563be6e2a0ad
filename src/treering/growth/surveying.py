"""What a plan comes to on a model and a corpus: its stages in their places, and what each will cost."""

from __future__ import annotations

from itertools import accumulate, pairwise

from transformers import PreTrainedModel

from treering import backbone
from treering import corpus as corpora
from treering.errors import TreeringError
from treering.growth import lora
from treering.growth.blocks import kinds, require_one_kind
from treering.growth.cost import StageCost, count, require_budget, shape_of
from treering.growth.plan import Plan, Step, steps
from treering.growth.trainable import has_trainable_table
from treering.training import Training
from treering.training.order import blocks_per_step


def survey(
    model: PreTrainedModel, corpus: corpora.Corpus, plan: Plan, training: Training
) -> tuple[list[Step], list[StageCost]]:
    """The plan's stages in their places on ``model``, and what each will cost, before anything runs.

    Raises:
        TreeringError: the plan does not fit the model, a stage exceeds its budget, ties blocks that attend in different
            ways, or LoRA's targets are not there.
    """
    block_size = corpus.manifest.block_size
    placed = steps(plan, len(backbone.blocks(model)))
    tokens_a_step = blocks_per_step(training, block_size) * block_size
    total = training.tokens or (training.epochs or 0) * len(corpus.train) * block_size
    # Rounded where each stage ends, so that all together take the steps of a single run.
    ends = list(accumulate(step.stage.tokens or (step.stage.share or 0) * total for step in placed))
    bounds = [0, *(round(end / tokens_a_step) for end in ends)]
    lengths = [high - low for low, high in pairwise(bounds)]
    if 0 in lengths:
        raise TreeringError(
            f"Stage {lengths.index(0) + 1} would take not one step of {tokens_a_step:,} tokens. Give it more tokens, "
            "or lower training.batch_tokens."
        )
    shape = shape_of(model.config, block_size)
    attending = getattr(model.config, "layer_types", None)
    for step in placed:
        if attending:
            attending = kinds(attending, step.stage.new, step.stage.start)
            require_one_kind(step.stage.leaders(), attending)
        if step.stage.lora:
            lora.require_targets(step.stage.lora, {name for name, _, _ in shape.linear}, model.config.model_type)
    costs = count(placed, [length * tokens_a_step for length in lengths], shape, has_trainable_table(model))
    require_budget(plan, costs)
    return placed, costs
