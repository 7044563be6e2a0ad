"""The digests of a composition's parts: what its configuration records of a part is what the part's shard must hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from treering import backbone
from treering.composition.arrangement import in_base
from treering.composition.bases import trunk_name
from treering.composition.configuration import expert_config
from treering.composition.layout import Part, parts
from treering.composition.parts import block_name, matrix_name, norm_name
from treering.errors import TreeringError
from treering.reading import printable


def recorded(config: PreTrainedConfig, part: Part) -> str | None:
    """The digest that a configuration has of a part; None if it was written before there were any."""
    if part.kind == "substrate":
        return (config.substrates or {}).get(part.name, {}).get("sha256")
    if part.kind == "fit":
        return (config.fusion[part.name] or {}).get("fingerprint")
    if part.kind == "trunk":
        trunk = config.tree.trunks[part.name]
        return trunk_name(_record(config, part.experts[0])["path"]["blocks"][trunk.first : trunk.last])
    if part.is_named_by_content:
        return part.name
    return _record(config, part.name).get("fingerprint")


def digest(config: PreTrainedConfig, part: Part, tensors: Mapping[str, Tensor]) -> str:
    """The digest (SHA-256 in hex) of a part's tensors among a shard's, to be compared with the one that is `recorded`.

    It does not depend on what the part is called in the composition.
    """
    own = {name.removeprefix(part.prefix): tensor for name, tensor in tensors.items() if name.startswith(part.prefix)}
    if part.kind in ("embedding", "head"):
        return matrix_name(own)
    if part.kind == "norm":
        return norm_name(expert_config(_record(config, part.experts[0])), own)
    if part.kind == "trunk":
        return _trunk_digest(config, part, own)
    return digest_of(own)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors ordered by name: name, dtype, shape, and bytes of each."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, _precision(tensor), list(tensor.shape)]).encode() + b"\n")
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _trunk_digest(config: PreTrainedConfig, part: Part, tensors: Mapping[str, Tensor]) -> str:
    """Of the names of a trunk's blocks."""
    trunk = config.tree.trunks[part.name]
    model = expert_config(_record(config, part.experts[0]))
    place = in_base(backbone.family(model).blocks)
    blocks: list[dict[str, Tensor]] = [{} for _ in range(trunk.last - trunk.first)]
    for name, tensor in tensors.items():
        number, _, rest = name.removeprefix(f"{place}.").partition(".")
        if not name.startswith(f"{place}.") or not number.isdecimal() or int(number) >= len(blocks):
            return "a tensor that no block has"
        blocks[int(number)][rest] = tensor
    return trunk_name(block_name(model, trunk.first + number, block) for number, block in enumerate(blocks))


def _record(config: PreTrainedConfig, name: str) -> Mapping[str, Any]:
    return next(record for record in config.experts if record["name"] == name)


def verify(config: PreTrainedConfig, directory: Path, files: Collection[str] | None = None) -> None:
    """Compare the shards in ``directory`` (all, or those ``files``) with what the configuration records of them.

    A part without a record, which older compositions have, passes.

    The stored bytes are read, whatever precision they are loaded in.

    Raises:
        TreeringError: a part is not what was written; names it and its file.
    """
    for part in parts(config):
        known = recorded(config, part)
        if known is not None and (files is None or part.file in files):
            _require_same(part, known, digest(config, part, shard(directory / part.file)), directory)


def record(config: PreTrainedConfig, directory: Path, new: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Note the digests of all parts in a configuration that is about to be written.

    Args:
        directory: holds the shards that stay as they are; they are compared with what is noted of them already, but for
            those that a path names: who loads them compares them.
        new: the tensors of every other shard, by file.

    Raises:
        TreeringError: a shard that stays is not what was written, or a frozen substrate is not what it was.
    """
    found: dict[Part, str] = {}
    for part in parts(config):
        if part.is_named_by_content:  # the configuration has its name already
            continue
        found[part] = digest(config, part, new.get(part.file) or shard(directory / part.file))
        if part.file not in new and (known := recorded(config, part)):
            _require_same(part, known, found[part], directory)
    matrices = {
        part.name: _matrix(part, new.get(part.file) or shard(directory / part.file), sha)
        for part, sha in found.items()
        if part.kind == "substrate"
    }
    _require_frozen(config.substrates or {}, matrices)
    config.substrates = matrices or None
    own = {part.name: sha for part, sha in found.items() if part.kind == "expert"}
    config.experts = [record | {"fingerprint": own.get(record["name"])} for record in config.experts]
    for part, sha in found.items():
        if part.kind == "fit" and config.fusion[part.name]:
            config.fusion = config.fusion | {part.name: config.fusion[part.name] | {"fingerprint": sha}}


def record_substrates(config: PreTrainedConfig, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Note in a configuration what its substrates are in memory, so that one that changes is known when it is saved.

    What is noted of a matrix of the same precision stays.
    """
    for part in parts(config):
        if part.kind == "substrate":
            known = (config.substrates or {}).get(part.name, {"dtype": None})
            tensors = shards[part.file]
            if any(_precision(tensor) != known["dtype"] and not tensor.is_meta for tensor in tensors.values()):
                matrix = _matrix(part, tensors, digest(config, part, tensors))
                config.substrates = (config.substrates or {}) | {part.name: matrix}


def shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard by name; their bytes are read when they are used.

    Raises:
        TreeringError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TreeringError(f"{path} is missing or damaged ({printable(str(error))}). Copy or make it again.") from None


def _precision(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _matrix(part: Part, tensors: Mapping[str, Tensor], sha: str) -> dict[str, str]:
    """What a configuration has of a substrate."""
    if set(tensors) != {f"{part.prefix}weight"}:
        raise TreeringError(f"{part.file} is damaged: it holds something else than a matrix. Copy or make it again.")
    return {"dtype": _precision(tensors[f"{part.prefix}weight"]), "sha256": sha}


def _require_same(part: Part, known: str, found: str, directory: Path) -> None:
    """Refuse a shard that was changed after it was written."""
    if found != known:
        way_out = f", or let the expert leave: treering compose remove DIR {part.name}" if part.kind == "expert" else ""
        raise TreeringError(
            f"{directory / part.file} is damaged or was changed: it does not hold the {part.kind} {part.name} that "
            f"config.json records (its SHA-256 is {found}, not {known}). Copy or make the composition again{way_out}."
        )


def _require_frozen(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse matrices that changed; in another precision they are others, and cannot be compared."""
    for fingerprint, matrix in after.items():
        known = before.get(fingerprint, matrix)
        if known["dtype"] == matrix["dtype"] and known["sha256"] != matrix["sha256"]:
            raise TreeringError(
                f"The matrix of the substrate {fingerprint} is not what it was when the experts were joined. It is "
                "frozen: what was trained on another cannot bear its fingerprint. Train with the substrate as it is "
                "(requires_grad=False), from the composition as it was before."
            )
