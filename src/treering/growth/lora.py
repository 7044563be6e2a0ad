"""Low-rank updates of frozen blocks, by peft, merged into their weights when a stage ends (paper section 5, 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn
from transformers import PreTrainedModel

from treering import backbone
from treering.errors import TreeringError
from treering.growth.plan import Lora


def attach(model: PreTrainedModel, blocks: Sequence[int], settings: Lora) -> nn.Module:
    """Let blocks (numbered from 1) learn low-rank updates, in place; the model computes what it did until they train.

    Only the updates require gradients afterwards; the caller says what else trains. Initial values come from torch's
    global random state.

    Returns:
        What `merge` takes.

    Raises:
        TreeringError: the blocks have no linear layer of such a name; those that they have are listed.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    place, stack = backbone.family(model.config).blocks, backbone.blocks(model)
    linear = [
        (f"{place}.{number - 1}.{name}", name.rpartition(".")[2])
        for number in blocks
        for name in backbone.linear_layers(stack[number - 1])
    ]
    known = {short for _, short in linear}
    require_targets(settings, known, model.config.model_type)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,  # type: ignore[arg-type]
        target_modules=[path for path, short in linear if short in (settings.targets or known)],
    )
    return LoraModel(model, config, "default")


def require_targets(settings: Lora, known: Collection[str], family: str) -> None:
    """Check that blocks of a family have the linear layers that LoRA shall update.

    Raises:
        TreeringError: one is not among the ``known``, which are listed.
    """
    if unknown := sorted(set(settings.targets or ()) - set(known)):
        raise TreeringError(
            f"LoRA cannot update {', '.join(unknown)}: a block of {family} has the linear layers "
            f"{', '.join(sorted(known))}."
        )


def merge(attached: nn.Module) -> None:
    """Add the updates to the weights that they belong to and take them off: the same function, to rounding."""
    attached.merge_and_unload()  # type: ignore[operator]
