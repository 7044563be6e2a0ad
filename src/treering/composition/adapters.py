"""Experts that come as PEFT adapters on a model."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from treering import tokenizer as tokenizers
from treering.errors import TreeringError
from treering.headers import header
from treering.location import locate, own_file_of
from treering.output import explain_full_disk, require_new, staged_directory
from treering.publishing.card import write_card
from treering.reading import printable, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_CONFIGURATION = 2**20
"""Bytes of an adapter's configuration."""


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
    return _merged(name, copy.deepcopy(expert))


def merge(
    adapter: str | os.PathLike[str], base: PreTrainedModel, tokenizer: Any, output: str | os.PathLike[str]
) -> None:
    """Write the model that a PEFT adapter in a directory or on the hub makes of ``base``, which it is merged into.

    Where the adapter says that its model is found is not asked: that is a name or a path of whoever made it.

    Raises:
        TreeringError: there is no adapter, it is damaged or not in safetensors, it is one of another model, it cannot
            be merged, or the output exists.
    """
    from peft import PeftConfig, PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    require_new(output)
    place = locate(adapter)
    described, stored = (own_file_of(place, name) for name in (CONFIG, WEIGHTS))
    if described is None or stored is None:
        missing = CONFIG if described is None else f"{WEIGHTS}; adapters in pickles, which can run code, are not opened"
        raise TreeringError(f"{printable(place)} is no PEFT adapter that could be merged: it has no {missing}.")
    values = read_json(described, MOST_CONFIGURATION)
    header(stored)
    tensors = load_file(stored)
    try:
        config = PeftConfig.from_peft_type(**values)
        config.inference_mode = True
        # On no device: what the configuration asks for is made only where the file has numbers for it.
        adapted = get_peft_model(base, config, low_cpu_mem_usage=True)
        assert isinstance(adapted, PeftModel)
        set_peft_model_state_dict(adapted, tensors, low_cpu_mem_usage=True)
        expected = {_plain(name) for name in get_peft_model_state_dict(adapted)}
        if expected != {_plain(name) for name in tensors}:
            raise ValueError("its tensors are not those that its configuration asks for in this model")
    except Exception as error:  # peft raises whatever a field of the configuration leads it to
        raise TreeringError(
            f"{printable(place)} is damaged, or an adapter of another model than this base: "
            f"{printable(str(error) or type(error).__name__, 500)}"
        ) from error
    whole = _merged(printable(place), adapted)
    with staged_directory(output) as staging, explain_full_disk(Path(output).parent):
        whole.save_pretrained(staging)
        tokenizers.save(tokenizer, staging)
        write_card(staging)


def _merged(name: str, adapted: Any) -> PreTrainedModel:
    """A PEFT model's own model, with its adapters merged into it."""
    try:
        return adapted.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        kind = ", ".join(str(getattr(own.peft_type, "value", own.peft_type)) for own in adapted.peft_config.values())
        raise TreeringError(
            f"{name} is a PEFT adapter ({kind}) that cannot be merged into its model, and so be no expert: {error}"
        ) from error


def _plain(name: str) -> str:
    """A tensor's name without what peft's versions put before it or leave out."""
    return re.sub(r"^(base_model\.model\.)+", "", name)
