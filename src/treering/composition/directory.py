"""Compositions on disk: from experts' directories to one directory that loads like any model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from treering import tokenizer as tokenizers
from treering.backbone import standing
from treering.composition.joining import DEFAULT_RULE, compose
from treering.composition.model import ComposedModel
from treering.errors import TreeringError
from treering.location import locate
from treering.output import explain_full_disk, require_new, staged_directory


def load_model(directory: str | os.PathLike[str], dtype: Any = None, rule: str | None = None) -> PreTrainedModel:
    """Load an expert or a composition for use, from a directory or the hub.

    Args:
        dtype: of its weights, instead of the one that they are stored in.
        rule: joins a composition's experts this time, instead of the rule that it was stored with.

    Raises:
        TreeringError: there is no model, its files are damaged or cut short, or a rule is given for a model that is
            no composition, or one that there is not.
    """
    place = locate(directory, "model")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype or "auto", output_loading_info=True)
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        raise TreeringError(
            f"No model could be loaded from {directory}: {error}\nIf it is damaged, copy or make it again."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise TreeringError(
            f"{directory} is damaged: its files lack {len(missing)} of the model's tensors, such as {missing[0]}. "
            "Copy or make it again."
        )
    if rule is None:
        return model.eval()
    if not isinstance(model, ComposedModel):
        raise TreeringError(
            f"{directory} is a single {model.config.model_type} model, not a composition: there is nothing that the "
            f"rule {rule} could join."
        )
    return model.eval().use(rule)


def compose_directories(
    experts: Mapping[str, str | os.PathLike[str]], output: str | os.PathLike[str], rule: str = DEFAULT_RULE
) -> ComposedModel:
    """Compose trained experts into ``output``, with their common tokenizer.

    Raises:
        TreeringError: the experts do not fit together (see ``treering.composition.compose``), one cannot be loaded,
            or the output exists.
    """
    require_new(output)
    if len(experts) < 2:
        raise TreeringError(f"A composition needs at least two experts, not {len(experts)}.")
    models = {name: load_model(path) for name, path in experts.items()}
    composed = compose(models, rule, {name: _provenance(Path(path)) for name, path in experts.items()})
    tokenizer = tokenizers.load(next(iter(experts.values())))
    own = standing(composed.config)
    if own is not None and tokenizers.identity(tokenizer) != own.tokenizer:
        raise TreeringError(
            f"The tokenizer in {next(iter(experts.values()))} is not the one that its config.json names: "
            f"{tokenizers.identity(tokenizer)} instead of {own.tokenizer}."
        )
    with explain_full_disk(Path(output).parent), staged_directory(output) as staging:
        composed.save_pretrained(staging)
        tokenizers.save(tokenizer, staging)
    return composed


def _provenance(expert: Path) -> dict[str, Any]:
    """What training wrote beside the expert: what it was made from and how."""
    record = expert / "training.json"
    return {"training": json.loads(record.read_text())} if record.exists() else {}
