"""Where an expert comes from: what its directory or repository tells, for its record in a composition."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

from treering.composition.joining import own_tensors
from treering.errors import TreeringError


def provenance(place: str, expert: PreTrainedModel) -> dict[str, Any]:
    """What is known of the expert in ``place`` (a directory, or a name on the hub); None where nothing is.

    Raises:
        TreeringError: its training.json or its model card cannot be read.
    """
    training = _training(place)
    data = training["origin"].pop("data", None) if training else None
    return {
        "origin": Path(place).resolve().name if Path(place).is_dir() else place,
        "licence": _licence(place),
        "data": data,
        "training": training,
        "fingerprint": fingerprint(expert),
    }


def fingerprint(expert: PreTrainedModel) -> str:
    """SHA-256 (hex) of an expert's own tensors, ordered by name: name, dtype, shape, and bytes of each.

    It does not depend on the expert's name in a composition, nor on the substrate that it shares with others.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(own_tensors(expert).items()):
        if name not in expert.all_tied_weights_keys:
            dtype = str(tensor.dtype).removeprefix("torch.")
            digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _training(place: str) -> dict[str, Any] | None:
    """What training wrote beside the expert: what it was made from and how."""
    path = _file(place, "training.json")
    if path is None:
        return None
    try:
        training = json.loads(path.read_text(encoding="utf-8"))
        training["origin"].get("data")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TreeringError(f"{path} is damaged ({error}). Copy the expert again.") from None
    return training


def _licence(place: str) -> str | None:
    """What the model card's front matter names as its licence."""
    path = _file(place, "README.md")
    if path is None:
        return None
    try:
        named = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError) as error:
        raise TreeringError(f"The model card {path} cannot be read: {error}\nMend its front matter.") from None
    return ", ".join(named) if isinstance(named, list) else named


def _file(place: str, name: str) -> Path | None:
    """A file of the expert, if it has one."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.exists() else None
    try:
        return Path(hf_hub_download(place, name))
    except EntryNotFoundError:
        return None
