"""A branch without its trunk, to be handed over: a few megabytes, which take root beside the model they grew on.

::

    config.json         of the whole model, which names the base
    branch.json         the names of all parts of the whole, from the embedding to the head
    branch.safetensors  those of them that the base does not have
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from treering import backbone
from treering import tokenizer as tokenizers
from treering.composition import fingerprints, parts
from treering.composition.bases import BRANCH, trunk_name, without_trunk
from treering.composition.joining import require_single
from treering.composition.loading import load_model, no_larger_than, require_model
from treering.composition.schema import Path as PathSchema
from treering.composition.schema import check
from treering.errors import TreeringError
from treering.location import locate
from treering.output import explain_full_disk, link_or_copy, require_new, staged_directory
from treering.reading import inside, printable, read_json

WEIGHTS = "branch.safetensors"
NOTES = ("README.md", "training.json")
"""Of a model, what a composition reads of where it comes from."""

Rooted = tuple[Mapping[str, Any], PreTrainedConfig, Mapping[str, Tensor]]
"""A model that a branch may stand on: its parts' names, its configuration, its tensors as Hugging Face names them."""


def is_cutting(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a branch without its trunk."""
    return Path(directory, BRANCH).is_file()


def cut(directory: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[str]:
    """Write what a branch has alone, and its base does not, into ``output``, to be handed over.

    `treering.composition.compose_directories` and `add_expert` take it like a model, where its base is among the
    experts.

    Returns:
        The names of the tensors that are written.

    Raises:
        TreeringError: there is no model, it was not grown as a branch, or what it was grown on is not what it was; or
            the output exists and is not this very cutting.
    """
    if not is_cutting(output):
        require_new(output)
    model = require_single(Path(directory).name, load_model(directory))
    trunk, tensors = backbone.grown_on(model.config), model.state_dict()
    path = parts.path(model.config, tensors)
    if trunk is None or trunk.trunk is None or path is None:
        raise TreeringError(
            f"{directory} does not say what it was grown on, so nobody could tell what of it is its own. Only a branch "
            "can be cut: treering grow branch --model MODEL …"
        )
    if trunk_name(path["blocks"][: trunk.blocks]) != trunk.trunk:
        raise TreeringError(
            f"The lowest {trunk.blocks} blocks of {directory} are not those that it was grown on ({trunk.trunk}): they "
            "were trained since. It can only be handed over whole."
        )
    theirs = {trunk.embedding, trunk.head, *path["blocks"][: trunk.blocks]}
    own = {
        name: tensor.contiguous()
        for part, found in parts.named(model.config, tensors, path).items()
        if part not in theirs
        for name, tensor in found.items()
    }
    if is_cutting(output) and path == read_json(Path(output, BRANCH)) and Path(output, WEIGHTS).is_file():
        return list(own)
    with explain_full_disk(Path(output).parent), staged_directory(output) as staging:
        save_file(own, staging / WEIGHTS)
        model.config.save_pretrained(staging)
        (staging / BRANCH).write_text(json.dumps(path, indent=1), encoding="utf-8")
        tokenizers.save(tokenizers.load(directory), staging)
        for name in NOTES:
            if Path(directory, name).is_file():
                link_or_copy(inside(directory, name), staging / name)
    return list(own)


def load_experts(
    places: Mapping[str, str | os.PathLike[str]], bases: Mapping[str, Rooted] | None = None
) -> dict[str, PreTrainedModel]:
    """The models in some directories or on the hub, by name; branches without their trunk take root on the others.

    Args:
        bases: what else they could stand on, by name.

    Raises:
        TreeringError: one cannot be loaded, or a branch's base is not among them.
    """
    found = {name: require_single(name, load_model(path)) for name, path in places.items() if not is_cutting(path)}
    stand_on = dict(bases or {})
    if len(found) < len(places):
        for name, model in found.items():
            tensors = model.state_dict()
            if names := parts.path(model.config, tensors):
                stand_on[name] = names, model.config, tensors
    for name, place in places.items():
        if name not in found:
            own, found[name] = root(place, stand_on)
            stand_on[name] = own, found[name].config, found[name].state_dict()
    return {name: found[name] for name in places}


def root(place: str | os.PathLike[str], bases: Mapping[str, Rooted]) -> tuple[Mapping[str, Any], PreTrainedModel]:
    """Make a branch whole again by what some models have in common with it; their tensors are not copied.

    Returns:
        The names of its parts, and the model.

    Raises:
        TreeringError: it is damaged, or what it stands on is not among them; says which block of whom differs.
    """
    directory = locate(place)
    require_model(directory, trust_remote_code=False)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    file = inside(directory, BRANCH)
    path = read_json(file)
    check(PathSchema, path, str(file))
    own = fingerprints.shard(inside(directory, WEIGHTS))
    wanted = {path["embedding"], path["head"], *path["blocks"]}
    tensors: dict[str, Tensor] = {}
    for names, base, theirs in bases.values():
        if base.model_type == config.model_type:
            found = parts.named(base, theirs, names)
            for part in wanted & found.keys():
                tensors |= found[part]
    tensors |= own  # last: a tied base calls its embedding a head, too
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    with no_larger_than(sizes, directory), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    expected = model.state_dict()
    if any(name not in tensors for name in expected):
        raise TreeringError(without_trunk(directory, config) + _differences(path, config, bases))
    if wrong := [name for name, tensor in expected.items() if tensors[name].shape != tensor.shape]:
        raise TreeringError(f"{directory} is damaged: {wrong[0]} has another shape than its config.json says.")
    model.load_state_dict({name: tensors[name] for name in expected}, assign=True)
    model.tie_weights()
    if parts.path(model.config, model.state_dict()) != path:
        raise TreeringError(
            f"{printable(directory)} is damaged or was changed: it does not hold the branch that {BRANCH} names. Copy "
            "it again."
        )
    return path, model.eval()


def _differences(path: Mapping[str, Any], config: PreTrainedConfig, bases: Mapping[str, Rooted]) -> str:
    """Where each of the models at hand ceases to be what a branch was grown on."""
    trunk, told = backbone.grown_on(config), [""]
    blocks = trunk.blocks if trunk else len(path["blocks"])
    for name, (names, _, _) in bases.items():
        own = names["blocks"][:blocks]
        pairs = zip(path["blocks"], own, strict=False)
        same = next((n for n, (one, other) in enumerate(pairs) if one != other), len(own))
        where = "in the embedding" if names["embedding"] != path["embedding"] else f"in block {same + 1}"
        told.append(f"  {name} is another model: its lowest {blocks} blocks are {trunk_name(own)}, and differ {where}.")
    return "\n".join(told)
