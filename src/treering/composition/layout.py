"""A composition on disk: an ordinary sharded checkpoint, a shard for each part that experts share (substrates, trunks,
norms, heads), one for what each expert has alone, and one for what was fitted.

All but the tensors follows from the configuration and the shards' headers, so that experts can come and go without
those that stay being read or written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from treering.composition.rules import RULES
from treering.errors import TreeringError
from treering.headers import header
from treering.inlining import inlined
from treering.reading import printable, read_json
from treering.registration import AUTO_MAP, CODE, LOADER

INDEX, FUSION = "model.safetensors.index.json", "fusion.safetensors"


def substrate_key(fingerprint: str) -> str:
    """The name of a substrate's module and shard."""
    return fingerprint[:16]


def expert_file(name: str) -> str:
    """The shard of an expert's own tensors."""
    return f"expert-{name}.safetensors"


def substrate_file(fingerprint: str) -> str:
    """The shard of a substrate's matrix."""
    return f"substrate-{substrate_key(fingerprint)}.safetensors"


def trunk_file(key: str) -> str:
    """The shard of a trunk's blocks."""
    return f"trunk-{key}.safetensors"


def end_file(kind: str, key: str) -> str:
    """The shard of a ``norm`` or a ``head`` that several experts have."""
    return f"{kind}-{key}.safetensors"


def fitted(fusion: Mapping[str, Any] | None) -> list[str]:
    """What was fitted on top of the experts and has a tensor of its own."""
    return [name for name in fusion or {} if "hidden" in RULES[name].needs]


class Part(NamedTuple):
    """A part of a composition: its shard, how its tensors' names begin, and the experts that have it.

    What several experts have is called by its name (``treering.composition.parts``), a trunk by its key, a substrate by
    its fingerprint, what an expert has alone and a fit by theirs.
    """

    kind: Literal["substrate", "embedding", "trunk", "norm", "head", "expert", "fit"]
    name: str
    file: str
    prefix: str
    experts: tuple[str, ...]

    @property
    def is_named_by_content(self) -> bool:
        """Whether the configuration knows it by its very numbers, in the paths of the experts that have it."""
        return self.kind in ("embedding", "trunk", "norm", "head")


def parts(config: PreTrainedConfig) -> list[Part]:
    """The parts of a composition: what is shared once, what each expert has alone, each fit that has tensors."""
    grown, shared = config.tree, dict[str, Part]()

    def share(kind: Any, name: str, file: str, prefix: str, expert: str) -> None:
        before = shared[file].experts if file in shared else ()
        shared[file] = Part(kind, name, file, prefix, (*before, expert))

    for record in config.experts:
        name, place, path = record["name"], grown.places[record["name"]], record.get("path") or {}
        if key := place.embedding:
            kind, called = (
                ("substrate", record["substrate"]) if record["substrate"] else ("embedding", path["embedding"])
            )
            share(kind, called, substrate_file(key), f"substrates.{key}.", name)
        for key in place.trunks:
            share("trunk", key, trunk_file(key), f"trunks.{key}.", name)
        for kind, key in (("norm", place.norm), ("head", place.head)):
            if key:
                share(kind, path[kind], end_file(kind, key), f"{kind}s.{key}.", name)
    own = [name for name, place in grown.places.items() if place.own]
    return [
        *shared.values(),
        *(Part("expert", name, expert_file(name), f"experts.{name}.", (name,)) for name in own),
        *(Part("fit", name, FUSION, f"fusion.{name}", ()) for name in fitted(config.fusion)),
    ]


def shard_files(config: PreTrainedConfig) -> list[str]:
    """The files of a composition's tensors, in order: what is shared, what each expert has alone, what was fitted."""
    return list(dict.fromkeys(part.file for part in parts(config)))


def shards(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A composition's tensors by file: ``experts.ru.…`` goes to the shard of ``ru``."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, part, *_ = name.split(".")
        file = FUSION if kind == "fusion" else f"{kind.removesuffix('s')}-{part}.safetensors"
        files.setdefault(file, {})[name] = tensor.contiguous()
    return files


def write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one shard."""
    save_file(tensors, path, metadata={"format": "pt"})


def write_description(config: PreTrainedConfig, directory: Path) -> None:
    """Write the configuration, the index and the model's code beside the shards, which lie in ``directory`` already.

    The code (``modeling_treering.py``) is for those who have transformers and not Treering, which never runs it.

    Raises:
        TreeringError: a shard is not there, or damaged.
    """
    config.architectures = ["ComposedModel"]
    config.auto_map = AUTO_MAP
    config.dtype = _widest([record["config"]["dtype"] for record in config.experts])
    config.save_pretrained(directory)
    sizes = {file: tensor_bytes(directory / file) for file in shard_files(config)}
    index = {
        "metadata": {"total_size": sum(sum(tensors.values()) for tensors in sizes.values())},
        "weight_map": _weight_map(sizes),
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2))
    (directory / LOADER).write_text(inlined(CODE), encoding="utf-8")


def require_index(config: PreTrainedConfig, directory: Path) -> None:
    """Refuse files that are not the composition's own, whole and no others.

    Raises:
        TreeringError: a shard is missing or damaged, or the index does not say where each tensor of them is.
    """
    expected = _weight_map({file: header(directory / file) for file in shard_files(config)})
    index = read_json(directory / INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    named = named if isinstance(named, dict) else {}
    if wrong := [*(name for name in expected if named.get(name) != expected[name]), *(named.keys() - expected.keys())]:
        raise TreeringError(
            f"{directory / INDEX} is damaged: it does not name the tensors of the shards beside it, "
            f"{printable(wrong[0])} for one. Copy or make the composition again."
        )
    if (directory / SAFE_WEIGHTS_NAME).exists():
        raise TreeringError(
            f"{directory} holds {SAFE_WEIGHTS_NAME} besides the shards of its experts; transformers would load that "
            "instead of them. Remove it."
        )


def _weight_map(files: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {name: file for file, tensors in files.items() for name in sorted(tensors)}


def tensor_bytes(path: Path) -> dict[str, int]:
    """The size of each tensor in a safetensors file, from its header alone.

    Raises:
        TreeringError: the file is not there, or damaged.
    """
    return {name: tensor["data_offsets"][1] - tensor["data_offsets"][0] for name, tensor in header(path).items()}


def _widest(dtypes: list[str]) -> str:
    """The one that holds the numbers of all."""
    widest = reduce(torch.promote_types, (getattr(torch, dtype) for dtype in dtypes))
    return str(widest).removeprefix("torch.")
