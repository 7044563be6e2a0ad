"""Experts that come as PEFT adapters on a model."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

from treering.errors import TreeringError


def merged(name: str, expert: Any) -> PreTrainedModel:
    """An expert whose PEFT adapter is merged into a copy of its model; one without an adapter as it is.

    Raises:
        TreeringError: the adapter cannot be merged (prompts, say, are no change of weights), or it is no model at all.
    """
    if isinstance(expert, PreTrainedModel):
        if getattr(expert, "_hf_peft_config_loaded", False):
            raise TreeringError(
                f"{name} has PEFT adapters among its own layers (add_adapter, load_adapter). Load them by "
                "peft.PeftModel.from_pretrained(model, ADAPTER) instead; such a model is merged here."
            )
        return expert
    if not hasattr(expert, "peft_config"):
        raise TreeringError(f"{name} is no Hugging Face model but a {type(expert).__name__}. Give a PreTrainedModel.")
    try:
        return copy.deepcopy(expert).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        kind = ", ".join(str(getattr(own.peft_type, "value", own.peft_type)) for own in expert.peft_config.values())
        raise TreeringError(
            f"{name} is a PEFT adapter ({kind}) that cannot be merged into its model, and so be no expert: {error}"
        ) from error
