"""What an expert is made of: a path from embedding through blocks to final norm and head, each named by what it is.

A part's name is the SHA-256 of its configuration and its numbers. Two experts with a common beginning have the same
names there, whoever made them and wherever they are stored: so a composition finds what they share
(``treering.composition.tree``), and nobody can pass another part for it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from treering import backbone

Tensors = Mapping[str, Tensor]

_NOT_A_BLOCKS = re.compile(
    r"(num_hidden_layers|n_layers?|num_layers|max_window_layers|vocab_size|tie_word_embeddings|treering\w*|"
    r"(torch_)?dtype|architectures|auto_map|\w+_token_id|use_cache|transformers_version|_name_or_path|_commit_hash|"
    r"initializer_range|output_\w+|return_dict|quantization_config)"
)
"""What of a model's configuration says nothing about how one of its blocks computes."""


class Parts(NamedTuple):
    """An expert's tensors by part, each named as in its own module; blocks are numbered from 0, the lowest."""

    embedding: dict[str, Tensor]
    blocks: list[dict[str, Tensor]]
    norm: dict[str, Tensor]
    head: dict[str, Tensor]


def is_known(config: PreTrainedConfig) -> bool:
    """Whether nothing but embedding, blocks, final norm and head stands between tokens and logits in this family."""
    return config.model_type in backbone.FAMILIES and backbone.family(config).plain


def split(config: PreTrainedConfig, tensors: Tensors) -> Parts | None:
    """The parts of a model's tensors, named as Hugging Face does; None of a family that has others besides."""
    if not is_known(config):
        return None
    own = backbone.family(config)
    found = Parts({}, [{} for _ in range(config.num_hidden_layers)], {}, {})
    for name, tensor in tensors.items():
        if name.startswith(f"{own.blocks}."):
            number, _, rest = name.removeprefix(f"{own.blocks}.").partition(".")
            if not number.isdecimal() or int(number) >= len(found.blocks):
                return None
            found.blocks[int(number)][rest] = tensor
            continue
        place, _, rest = name.rpartition(".")
        kinds = {own.embedding: found.embedding, own.final_norm: found.norm, own.head: found.head}
        if place not in kinds:
            return None
        kinds[place][rest] = tensor
    if config.tie_word_embeddings and not found.head:
        found.head.update(found.embedding)
    whole = all((set(found.embedding) == {"weight"}, set(found.head) == {"weight"}, *found.blocks))
    return found if whole else None


def named(config: PreTrainedConfig, tensors: Tensors, path: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """A model's tensors, as Hugging Face names them, by the names of the parts that they belong to.

    Args:
        path: the names of its parts.
    """
    own, found = backbone.family(config), dict[str, dict[str, Tensor]]()
    ends = {own.embedding: path["embedding"], own.final_norm: path["norm"], own.head: path["head"]}
    for name, tensor in tensors.items():
        number = name.removeprefix(f"{own.blocks}.").partition(".")[0]
        part = path["blocks"][int(number)] if name.startswith(f"{own.blocks}.") else ends[name.rpartition(".")[0]]
        found.setdefault(part, {})[name] = tensor
    return found


def digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor; its numbers count as the float32 that they are, however they are kept."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    sha = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
    sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def path(config: PreTrainedConfig, tensors: Tensors, digest: Callable[[Tensor], str] = digest) -> dict[str, Any] | None:
    """The names of an expert's parts: ``embedding``, ``blocks``, ``norm`` and ``head``; None where it has others.

    An embedding and a head of the same numbers have the same name.

    Args:
        digest: `digest`, or one that remembers the tensors that it has seen.
    """
    found = split(config, tensors)
    if found is None:
        return None
    return {
        "embedding": matrix_name(found.embedding, digest),
        "blocks": [block_name(config, number, block, digest) for number, block in enumerate(found.blocks)],
        "norm": norm_name(config, found.norm, digest),
        "head": matrix_name(found.head, digest),
    }


def matrix_name(tensors: Tensors, digest: Callable[[Tensor], str] = digest) -> str:
    """The name of an embedding or a head, which is a matrix and nothing else."""
    return _name({}, tensors, digest)


def norm_name(config: PreTrainedConfig, tensors: Tensors, digest: Callable[[Tensor], str] = digest) -> str:
    """The name of a final norm."""
    return _name(_of_block(config, None), tensors, digest)


def block_name(
    config: PreTrainedConfig, number: int, tensors: Tensors, digest: Callable[[Tensor], str] = digest
) -> str:
    """The name of block ``number`` (from 0) of a model with that configuration."""
    return _name(_of_block(config, number), tensors, digest)


def part_of_stack(config: PreTrainedConfig, first: int, last: int) -> PreTrainedConfig:
    """The configuration of a model that is blocks ``first`` to ``last`` (exclusive) of one with this configuration."""
    part = copy.deepcopy(config)
    for name, values in backbone.per_block(config).items():
        setattr(part, name, values[first:last])
    part.num_hidden_layers = last - first
    return part


def _of_block(config: PreTrainedConfig, number: int | None) -> dict[str, Any]:
    """What of a configuration concerns one block; without a number, what holds of all."""
    told = {name: value for name, value in config.to_diff_dict().items() if not _NOT_A_BLOCKS.fullmatch(name)}
    for name in backbone.PER_BLOCK:
        told.pop(name, None)
    if number is not None:
        told |= {name: values[number] for name, values in backbone.per_block(config).items()}
    return told


def _name(configuration: Mapping[str, Any], tensors: Tensors, digest: Callable[[Tensor], str]) -> str:
    """SHA-256 (hex) of a part."""
    told = [configuration, {name: digest(tensor) for name, tensor in tensors.items()}]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
