"""Several experts as one Hugging Face model: one substrate, one cache, one distribution over the next token."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from treering import backbone
from treering.composition.rules import rule
from treering.errors import TreeringError

_LOADER = '''"""Lets transformers load this composition with trust_remote_code=True; needs the package treering."""

from treering.composition import ComposedModel, CompositionConfig  # noqa: F401
'''
_AUTO_MAP = {
    "AutoConfig": "modeling_treering.CompositionConfig",
    "AutoModelForCausalLM": "modeling_treering.ComposedModel",
}


class CompositionConfig(PreTrainedConfig):
    """What a composition is made of.

    Args:
        experts: one record per expert, in order: ``name``, ``config`` (its own configuration) and whatever is known of
            its provenance.
        rule: name of the rule that joins their logits.
        treering: the substrate that all stand on (see ``treering.backbone.Standing``).
    """

    model_type = "treering_composition"

    def __init__(
        self,
        experts: list[dict[str, Any]] | None = None,
        rule: str = "mean",
        treering: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.experts = experts or []
        self.rule = rule
        self.treering = treering
        configs = [expert_config(record) for record in self.experts]
        # What generation, evaluation and caches ask of any model.
        self.vocab_size = configs[0].vocab_size if configs else 0
        self.hidden_size = configs[0].hidden_size if configs else 0
        self.num_hidden_layers = sum(config.num_hidden_layers for config in configs)
        self.max_position_embeddings = min((config.max_position_embeddings for config in configs), default=0)
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)


def expert_config(record: Mapping[str, Any]) -> PreTrainedConfig:
    """An expert's own configuration, from its record in the composition's."""
    return AutoConfig.for_model(**record["config"])


class ComposedModel(PreTrainedModel, GenerationMixin):
    """Experts on one substrate, joined at their output by a rule; everything a Hugging Face causal model does.

    The experts keep no embedding of their own: tokens pass through the shared substrate once, and every expert reads
    the same vectors. On disk the composition is an ordinary sharded checkpoint, one shard for the substrate and one
    for each expert.
    """

    config_class = CompositionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CompositionConfig) -> None:
        super().__init__(config)
        self.substrate = nn.Embedding(config.vocab_size, config.hidden_size)
        self.experts = nn.ModuleDict()
        self.depths: list[int] = []
        for record in config.experts:
            expert = AutoModelForCausalLM.from_config(expert_config(record))
            self.depths.append(expert.config.num_hidden_layers)
            expert.set_input_embeddings(nn.Identity())
            self.experts[record["name"]] = expert
        self.rule = rule(config.rule)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is ever initialised here: every weight comes from an expert or the substrate."""

    def get_input_embeddings(self) -> nn.Module:
        return self.substrate

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Joined logits [batch, position, vocab] of the next token, and with ``labels`` [batch, position] their loss.

        ``past_key_values`` holds the layers of all experts one after the other, so that everything which reorders,
        crops or copies a cache (beam search, assisted decoding) works on the composition as on any model.
        """
        if inputs_embeds is None:
            inputs_embeds = self.substrate(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        logits = [
            expert(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            ).logits
            for expert, cache in zip(self.experts.values(), self._caches(past_key_values), strict=True)
        ]
        joined = self.rule(torch.stack(logits))
        loss = None if labels is None else ForCausalLMLoss(joined, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=joined, past_key_values=past_key_values)

    def _caches(self, cache: Cache | None) -> list[Cache | None]:
        """For each expert, a view of its own layers in the common cache (the layers are shared, not copied)."""
        if cache is None:
            return [None] * len(self.experts)
        if cache.layer_class_to_replicate is not None:  # made without a configuration, it would grow as it is used
            missing = sum(self.depths) - len(cache.layers)
            cache.layers += [cache.layer_class_to_replicate() for _ in range(missing)]
        views: list[Cache | None] = []
        first = 0
        for depth in self.depths:
            view, after = DynamicCache(), first + depth
            view.layers = cache.layers[first:after]
            views.append(view)
            first = after
        return views

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Write the configuration and one shard for the substrate and each expert, with Hugging Face's index."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.auto_map = _AUTO_MAP
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(directory)
        self.generation_config.save_pretrained(directory)
        shards: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.state_dict().items():
            shards.setdefault(_shard(name), {})[name] = tensor.contiguous()
        for file, tensors in shards.items():
            save_file(tensors, directory / file, metadata={"format": "pt"})
        size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        (directory / "modeling_treering.py").write_text(_LOADER)


def _shard(name: str) -> str:
    """The file of a tensor: ``experts.ru.…`` goes to the shard of ``ru``."""
    parts = name.split(".")
    return f"expert-{parts[1]}.safetensors" if parts[0] == "experts" else "substrate.safetensors"


def compose(
    experts: Mapping[str, PreTrainedModel],
    rule_name: str = "mean",
    records: Mapping[str, Mapping[str, Any]] | None = None,
) -> ComposedModel:
    """Join experts that stand on one frozen substrate.

    Args:
        experts: docked and trained models by name; at least two.
        rule_name: how their logits are joined; see ``treering.composition.rules``.
        records: by expert's name, what else its record in the configuration shall say of it (origin, licence …).

    Raises:
        TreeringError: fewer than two experts, a name that cannot be a file's, an expert that Treering did not dock,
            experts on different substrates or tokenizers (both fingerprints are named), or a substrate that was
            trained, which no fingerprint stands for.
    """
    rule(rule_name)
    if len(experts) < 2:
        raise TreeringError(f"A composition needs at least two experts, not {len(experts)}.")
    for name in experts:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise TreeringError(f"{name!r} cannot be an expert's name: use letters, digits, '-' and '_'.")
    common = _common_standing(experts)
    first = next(iter(experts.values()))
    config = CompositionConfig(
        experts=[
            {"name": name, **(records or {}).get(name, {}), "config": expert.config.to_dict()}
            for name, expert in experts.items()
        ],
        rule=rule_name,
        treering=common,
        bos_token_id=first.config.bos_token_id,
        eos_token_id=first.config.eos_token_id,
        pad_token_id=first.config.pad_token_id,
    )
    with init_empty_weights(include_buffers=False):  # the experts' own tensors are put in place, never copied
        composed = ComposedModel(config)
    weights = {"substrate.weight": backbone.embedding(first).weight}
    for name, expert in experts.items():
        own = backbone.family(expert.config).embedding + ".weight"
        weights |= {f"experts.{name}.{key}": value for key, value in expert.state_dict().items() if key != own}
    composed.load_state_dict(weights, assign=True)
    return composed.eval()


def _common_standing(experts: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """The record of the substrate that all experts share, in their configurations and to the last byte."""
    first_name, first = next(iter(experts.items()))
    reference = backbone.standing(first.config)
    for name, expert in experts.items():
        own = backbone.standing(expert.config)
        if own is None or reference is None:
            raise TreeringError(
                f"{first_name if reference is None else name} names no substrate in its config.json: it was not "
                "docked by Treering, so nothing says that its tokens mean the same as the others'."
            )
        if not own.frozen:
            raise TreeringError(
                f"{name} was trained on a trainable embedding, which is no longer the substrate it started from. "
                "Only experts on a frozen substrate can be composed."
            )
        if own != reference:
            what = (
                "substrates" if own.tokenizer == reference.tokenizer else "tokenizers, and so on different substrates"
            )
            raise TreeringError(
                f"{first_name} and {name} stand on different {what}:\n"
                f"  {first_name}: substrate {reference.fingerprint}, tokenizer {reference.tokenizer}\n"
                f"  {name}: substrate {own.fingerprint}, tokenizer {own.tokenizer}\n"
                "Train the experts on one substrate."
            )
        if not torch.equal(backbone.embedding(expert).weight, backbone.embedding(first).weight):
            raise TreeringError(
                f"{name}'s embedding is not the substrate {own.fingerprint} that its config.json names: it was "
                "changed after docking."
            )
    return first.config.treering


AutoConfig.register(CompositionConfig.model_type, CompositionConfig)
AutoModelForCausalLM.register(CompositionConfig, ComposedModel)
