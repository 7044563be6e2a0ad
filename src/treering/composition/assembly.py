"""The modules of a composition: what is shared once, and each expert as a model of its family that stands on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from treering import backbone
from treering.composition.configuration import expert_config
from treering.composition.parts import part_of_stack
from treering.composition.tree import Record, Tree


def assemble(owner: Any, records: Sequence[Record], grown: Tree, asked: Mapping[str, Any]) -> dict[str, str]:
    """Fill a composition's ``substrates``, ``trunks``, ``norms``, ``heads`` and ``experts``.

    Args:
        owner: the composition.
        asked: of every model, such as how it computes attention.

    Returns:
        By the name of each weight that is another's, the name of that one.
    """
    configs = {record["name"]: expert_config(record) for record in records}
    for trunk in grown.trunks.values():
        owner.trunks[trunk.key] = _trunk(configs[trunk.experts[0]], trunk.first, trunk.last, asked)
    ties: dict[str, str] = {}
    heads: dict[str, nn.Linear] = {}  # of those who have one in common
    for name, config in configs.items():
        place, first, last = grown.places[name], grown.places[name].first, config.num_hidden_layers
        expert = _upper(config, first, last, asked) if place.embedding else _whole(config, asked)
        owner.experts[name] = expert
        if place.embedding and place.embedding not in owner.substrates:
            owner.substrates[place.embedding] = nn.Embedding(config.vocab_size, config.hidden_size)
        if place.embedding and not (place.tied or place.head):
            expert.set_output_embeddings(_head(config))
        if place.head and place.head not in owner.heads:
            owner.heads[place.head] = heads[place.head] = _head(config)
        if place.embedding and place.tied and place.embedding not in heads:
            heads[place.embedding] = _head(config, owner.substrates[place.embedding].weight)
        if common := place.embedding if place.tied else place.head:
            expert.set_output_embeddings(heads[common])
            whose = "substrates" if place.tied else "heads"
            ties[f"experts.{name}.{backbone.family(config).head}.weight"] = f"{whose}.{common}.weight"
        if place.norm:
            if place.norm not in owner.norms:
                owner.norms[place.norm] = backbone.final_norm(expert)
            backbone.set_final_norm(expert, owner.norms[place.norm])
            for weight, _ in owner.norms[place.norm].named_parameters():
                own = f"experts.{name}.{backbone.family(config).final_norm}.{weight}"
                ties[own] = f"norms.{place.norm}.{weight}"
    return ties


def _whole(config: PreTrainedConfig, asked: Mapping[str, Any]) -> PreTrainedModel:
    """An expert that has its own embedding; loading chooses the precision, not what it was once stored in."""
    return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype(), trust_remote_code=False, **asked)


def _upper(config: PreTrainedConfig, first: int, last: int, asked: Mapping[str, Any]) -> PreTrainedModel:
    """Blocks ``first`` to ``last`` (exclusive) of a model, its final norm, and no embedding; a head of one token."""
    part = part_of_stack(config, first, last)
    part.vocab_size, part.pad_token_id, part.tie_word_embeddings = 1, None, False
    model = _whole(part, asked)
    model.set_input_embeddings(nn.Identity())
    model.config.vocab_size, model.config.pad_token_id = config.vocab_size, config.pad_token_id
    if first and hasattr(model.base_model, "emb_dropout"):  # GPT-NeoX's, of embeddings: states are none
        model.base_model.emb_dropout = nn.Identity()
    return model


def _trunk(config: PreTrainedConfig, first: int, last: int, asked: Mapping[str, Any]) -> nn.Module:
    """Blocks ``first`` to ``last`` (exclusive) of a model, and nothing else."""
    model = _upper(config, first, last, asked)
    backbone.set_final_norm(model, nn.Identity())
    return model.base_model


def _head(config: PreTrainedConfig, matrix: nn.Parameter | None = None) -> nn.Linear:
    """An output head; of an embedding's ``matrix``, if that is given."""
    if matrix is None:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    head = nn.Linear(1, 1, bias=False)
    head.in_features, head.out_features, head.weight = config.hidden_size, config.vocab_size, matrix
    return head
