"""What of a model trains in a stage: everything else stays byte for byte what it is."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from treering import backbone
from treering.growth import lora
from treering.growth.plan import Step
from treering.training.turns import ByTurns


def set_trainable(model: PreTrainedModel, step: Step) -> nn.Module | None:
    """Let exactly what the stage trains require gradients; returns its low-rank updates, if it has any."""
    model.requires_grad_(False)
    attached = None
    if step.stage.lora:
        others = [number for number in range(1, step.depth + 1) if number not in step.stage.trained]
        attached = lora.attach(model, others, step.stage.lora)
    stack = backbone.blocks(model)
    for part in (*(stack[number - 1] for number in step.stage.trained), backbone.final_norm(model)):
        part.requires_grad_(True)
    # In this order: a frozen head may be the embedding itself.
    backbone.embedding(model).requires_grad_(table_trains(model, step))
    backbone.head(model).requires_grad_(step.stage.head == "trained")
    return attached


def turns_of(model: PreTrainedModel, step: Step) -> ByTurns | None:
    """Whose turn it is in a stage whose blocks train by turns; None if all of them train all the time."""
    if step.stage.turns is None:
        return None
    stack, groups = backbone.blocks(model), []
    for window in step.stage.windows():
        parts = [stack[number - 1] for number in window]
        if step.stage.turns.head and step.stage.head_trains(window):
            parts += [backbone.final_norm(model), backbone.head(model)]
        groups.append([parameter for part in parts for parameter in part.parameters()])
    return ByTurns(groups, step.stage.turns.steps)


def table_trains(model: PreTrainedModel, step: Step) -> bool:
    """Whether the embedding trains in a stage: a trainable one does in the first (the paper's control)."""
    return step.number == 1 and has_trainable_table(model)


def has_trainable_table(model: PreTrainedModel) -> bool:
    """Whether the model stands on an embedding that is not frozen."""
    known = backbone.standing(model.config)
    return known is not None and not known.frozen


def untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own, which train while the embedding does not."""
    if model.config.tie_word_embeddings:
        head = backbone.head(model)
        head.weight = nn.Parameter(backbone.embedding(model).weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
