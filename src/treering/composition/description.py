"""What a model is: kind, shape, size and origin, told from its configuration and the headers of its files alone."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from treering import backbone
from treering.composition import layout
from treering.composition.configuration import CompositionConfig
from treering.composition.cuttings import WEIGHTS as CUTTING
from treering.composition.cuttings import is_cutting
from treering.composition.directory import list_experts
from treering.composition.loading import gguf_config, read_composition, require_model, told, weights
from treering.composition.provenance import provenance
from treering.errors import TreeringError
from treering.gguf import is_gguf, require_gguf
from treering.headers import header
from treering.location import locate
from treering.reading import printable


def describe(name_or_path: str | os.PathLike[str], trust_remote_code: bool = False) -> dict[str, Any]:
    """What is known of an expert, a branch, a composition, or a model that somebody else made.

    No weights are read, but of a repository on the hub they are fetched.

    Returns:
        ``kind``, and whatever is known of ``family``, ``layers``, ``width``, ``vocabulary``, ``context``,
        ``parameters``, ``precisions``, ``bytes``, ``substrate``, ``base`` (of a branch), ``origin``, ``licence``,
        ``data`` and ``training``; of a composition also ``rule`` and ``experts`` (`list_experts`).

    Raises:
        TreeringError: there is no model, or what is there is damaged (see ``treering.composition.load_model``).
    """
    try:
        if is_gguf(name_or_path):
            return _of_gguf(Path(name_or_path))
        place = locate(name_or_path)
        if require_model(place, trust_remote_code)["model_type"] == CompositionConfig.model_type:
            return _of_composition(weights(place)[0].parent)
        return _of_model(place, trust_remote_code)
    except TreeringError:
        raise
    except Exception as error:  # transformers and the hub each raise their own
        raise TreeringError(
            f"Nothing could be told of the model in {printable(str(name_or_path))}: {told(error)}\n"
            "If it is damaged, copy or make it again."
        ) from error


def _of_model(place: str, trust_remote_code: bool) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    grown, stands, cut = backbone.grown_on(config), backbone.standing(config), is_cutting(place)
    kind = "branch without its trunk" if cut else "branch" if grown else "model"
    marks = {"substrate": stands and stands.fingerprint, "base": grown and grown.model_dump()}
    size = _size([Path(place, CUTTING)] if cut else weights(place))
    return {"kind": kind} | _shape(config) | size | marks | provenance(place)


def _of_composition(directory: Path) -> dict[str, Any]:
    config = read_composition(directory)
    size = _size([directory / file for file in layout.shard_files(config)])
    joined = {"kind": "composition", "rule": config.rule, "vocabulary": config.vocab_size}
    return joined | size | {"experts": list_experts(directory)}


def _of_gguf(path: Path) -> dict[str, Any]:
    numbers = sum(require_gguf(path))
    return {"kind": "model"} | _shape(gguf_config(path)) | {"parameters": numbers, "bytes": path.stat().st_size}


def _shape(config: PreTrainedConfig) -> dict[str, Any]:
    """What all families have, by one name; None where one does not say it."""
    text = config.get_text_config()
    fields = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    return {"family": config.model_type} | {name: getattr(text, field, None) for name, field in fields.items()}


def _size(files: list[Path]) -> dict[str, Any]:
    tensors = [tensor for file in files for tensor in header(file).values()]
    return {
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors),
        "precisions": sorted({tensor["dtype"] for tensor in tensors}),
        "bytes": sum(file.stat().st_size for file in files),
    }
