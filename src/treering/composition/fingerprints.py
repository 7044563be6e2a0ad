"""The digests of a composition's parts: what its configuration records of a part is what the part's shard must hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from treering.composition.layout import FUSION, expert_file, fitted, substrate_file, substrate_key
from treering.errors import TreeringError
from treering.reading import printable


class Part(NamedTuple):
    """A substrate (by its fingerprint), an expert or a fit (by name): its shard, and how its tensors' names begin."""

    kind: str
    name: str
    file: str
    prefix: str


def parts(config: PreTrainedConfig) -> list[Part]:
    """The parts of a composition: each substrate once, each expert, each fit that has tensors."""
    substrates = dict.fromkeys(record["substrate"] for record in config.experts if record["substrate"])
    experts = [record["name"] for record in config.experts]
    return [
        *(Part("substrate", s, substrate_file(s), f"substrates.{substrate_key(s)}.") for s in substrates),
        *(Part("expert", name, expert_file(name), f"experts.{name}.") for name in experts),
        *(Part("fit", name, FUSION, f"fusion.{name}") for name in fitted(config.fusion)),
    ]


def recorded(config: PreTrainedConfig, part: Part) -> str | None:
    """The digest that a configuration has of a part; None if it was written before there were any."""
    if part.kind == "substrate":
        return (config.substrates or {}).get(part.name, {}).get("sha256")
    if part.kind == "fit":
        return (config.fusion[part.name] or {}).get("fingerprint")
    return next(record.get("fingerprint") for record in config.experts if record["name"] == part.name)


def digest(part: Part, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a part's tensors among a shard's, ordered by name: name, dtype, shape, and bytes of each.

    It does not depend on the part's name in the composition.
    """
    sha = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(part.prefix)):
        tensor = tensors[name]
        told = [name.removeprefix(part.prefix), _precision(tensor), list(tensor.shape)]
        sha.update(json.dumps(told).encode() + b"\n")
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


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
            _require_same(part, known, digest(part, shard(directory / part.file)), directory)


def record(config: PreTrainedConfig, directory: Path, new: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Note the digests of all parts in a configuration that is about to be written.

    Args:
        directory: holds the shards that stay as they are; they are compared with what is noted of them already.
        new: the tensors of every other shard, by file.

    Raises:
        TreeringError: a shard that stays is not what was written, or a frozen substrate is not what it was.
    """
    shards = {part.file: new.get(part.file) or shard(directory / part.file) for part in parts(config)}
    found = {part: digest(part, shards[part.file]) for part in parts(config)}
    for part in found:
        if part.file not in new and (known := recorded(config, part)):
            _require_same(part, known, found[part], directory)
    matrices = {p.name: _matrix(p, shards[p.file], sha) for p, sha in found.items() if p.kind == "substrate"}
    _require_frozen(config.substrates or {}, matrices)
    config.substrates = matrices or None
    own = {part.name: sha for part, sha in found.items() if part.kind == "expert"}
    config.experts = [record | {"fingerprint": own[record["name"]]} for record in config.experts]
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
                matrix = _matrix(part, tensors, digest(part, tensors))
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
