"""Experts that were trained apart, joined into one causal language model at their output.

This file stands beside the weights of a composition, so that transformers loads it without the package that made it::

    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

It needs torch and transformers alone. Every expert is a plain transformers model; what several experts have in common
(an embedding, the blocks of a trunk, a norm, a head) is one module that is a part of each. All of them read a text, and
a rule joins what they say of the next token: by default a mixture, in which an expert weighs as much as the text so far
speaks for it. `ComposedModel` comes first, then the rules, then what the configuration says of who shares what.

Treering (Apache-2.0) wrote this file, and has a faster model of its own for the same weights: there a trunk reads a
text once for all that stand on it, not once for each, and the rule ``top_k`` lets the other experts rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from treering.composition.pools import log_likelihood
from treering.composition.posterior import log_prior
from treering.composition.repeats import with_padding
from treering.composition.rules import RULES, Reading, Rule, adapter_start, gate_start
from treering.composition.tree import Place, Record, Trunk, tree

PARTS = {"gpt_neox": ("layers", "final_layer_norm"), "falcon": ("h", "ln_f")}
"""What families call their blocks and their final norm, where not as Llama does."""


class CompositionConfig(PreTrainedConfig):
    """What a composition is made of.

    Args:
        experts: of each its ``name``, ``config`` (a transformers model's), ``weight`` before any text, and ``path``,
            the names of its parts: parts of one name are one.
        rule: how they are joined, as ``evidence:switch=0.01``; ``from_pretrained(DIRECTORY, rule=…)`` chooses another.
        fusion: what was fitted on top of the experts, by the name of its rule.
    """

    model_type = "treering_composition"

    def __init__(
        self,
        experts: list[dict[str, Any]] | None = None,
        rule: str = "mean",
        fusion: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.experts, self.rule, self.fusion = experts or [], rule, fusion
        super().__init__(**kwargs)


class Heard(DynamicLayer):
    """What the experts said last, and how far each is believed: what evidence remembers of the text so far.

    It is the last layer of the cache, so that beam search, which reorders the rows of a cache, reorders it too.
    ``keys`` are the experts' logits after the last token [batch, expert, 1, vocab], ``values`` the evidence after it
    and then all tokens so far [batch, evidence + position, 1, 1].
    """

    is_croppable = False

    def note(self, logits: Tensor, evidence: Tensor, tokens: Tensor) -> None:
        """Remember logits [expert, batch, vocab], evidence [row, batch] (see `Joined`), tokens [batch, position]."""
        self.rows, kept = len(evidence), torch.cat([evidence.T, tokens.to(evidence)], 1)
        self.keys, self.values = logits.movedim(0, 1)[:, :, None], kept[..., None, None]
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    @property
    def logits(self) -> Tensor:
        """Those logits [expert, batch, vocab]."""
        assert self.keys is not None
        return self.keys[:, :, 0].movedim(1, 0)

    @property
    def evidence(self) -> Tensor:
        """That evidence [row, batch]."""
        assert self.values is not None
        return self.values[:, : self.rows, 0, 0].T

    @property
    def tokens(self) -> Tensor:
        """Those tokens [batch, position]."""
        assert self.values is not None
        return self.values[:, self.rows :, 0, 0].long()

    def crop(self, *_: Any) -> None:
        raise NotImplementedError("What was read cannot be taken back here (assisted decoding): install Treering.")


class ComposedModel(PreTrainedModel, GenerationMixin):
    """Experts joined at their output by a rule.

    ``models`` holds the experts as plain transformers models, by name. ``substrates``, ``trunks``, ``norms``, ``heads``
    and ``experts`` hold the same modules by the names that their weights have in the files: what experts share once,
    and under ``experts`` what each has alone.

    Raises:
        ValueError: there is no such rule, or what it needs was not fitted.
    """

    config_class = CompositionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CompositionConfig) -> None:
        attention = config._attn_implementation
        super().__init__(config)
        config._attn_implementation = attention  # the experts' own affair
        self.rule = chosen(config.rule)
        self.substrates, self.trunks = nn.ModuleDict(), nn.ModuleDict()
        self.norms, self.heads, self.experts = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.models, grown = nn.ModuleDict(), tree(config.experts)
        for record in config.experts:
            place = grown.places[record["name"]]
            self._add(record, place, [grown.trunks[key] for key in place.trunks], attention)
        fitted = [name for name in config.fusion or {} if name in RULES and "hidden" in RULES[name].needs]
        self.fusion = nn.ParameterDict({name: nn.Parameter(self._start(name)) for name in fitted})
        if "hidden" in self.rule.needs and self.rule.name not in fitted:
            raise ValueError(f"The rule {self.rule.name} has to be fitted first, which Treering does. Choose another.")
        self._ties = ties(self)
        self._tied_weights_keys = {r"^models\.": ""}  # what is under models is saved by its other name
        self.post_init()
        self.all_tied_weights_keys = self._ties

    def _add(self, record: Record, place: Place, trunks: Sequence[Trunk], attention: str | None) -> None:
        """Build an expert as the model that it is alone, and put what others have too in its place."""
        name, config = record["name"], AutoConfig.for_model(**record["config"])
        asked = {"attn_implementation": attention} if attention else {}
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.get_default_dtype(), trust_remote_code=False, **asked
        )
        self.models[name] = model
        if place.embedding:
            model.set_input_embeddings(shared(self.substrates, place.embedding, model.get_input_embeddings()))
        if place.tied or getattr(config, "tie_word_embeddings", False):
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        elif place.head:
            model.set_output_embeddings(shared(self.heads, place.head, model.get_output_embeddings()))
        if not place.embedding:
            self.experts[name] = model
            return
        base, (layers, norm) = model.base_model, PARTS.get(config.model_type, ("layers", "norm"))
        stack = getattr(base, layers)
        for trunk in trunks:
            own_blocks = nn.ModuleDict({layers: stack[trunk.first : trunk.last]})
            blocks: Any = shared(self.trunks, trunk.key, own_blocks)
            for number, block in enumerate(blocks[layers], trunk.first):
                stack[number] = block
        own: dict[str, nn.Module] = {layers: stack[place.first :]}
        if place.norm:
            setattr(base, norm, shared(self.norms, place.norm, getattr(base, norm)))
        else:
            own[norm] = getattr(base, norm)
        head = {} if place.tied or place.head else {"lm_head": model.get_output_embeddings()}
        self.experts[name] = nn.ModuleDict({model.base_model_prefix: nn.ModuleDict(own), **head})

    def _start(self, rule: str) -> Tensor:
        """What a gate or an adapter is before anything was fitted; its file says what it became."""
        models: list[Any] = list(self.models.values())
        heads = [model.get_output_embeddings() for model in models]
        if rule == "gate":
            return gate_start(len(heads), sum(head.in_features for head in heads))
        return adapter_start([head.weight.detach()[: self.config.vocab_size] for head in heads])

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is initialised: every weight comes from a file."""

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Which weights are another's, as transformers asks."""
        return self._ties

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Joined logits [batch, position, vocab] of the next token; their loss with ``labels`` [batch, position]."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        begin = past_key_values.get_seq_length() if past_key_values is not None else 0
        predicted, kept = follows(input_ids, attention_mask, begin), positions(logits_to_keep, input_ids)
        caches, heard = self._caches(past_key_values)
        before = heard if begin else None
        tokens = input_ids if before is None else torch.cat([before.tokens, input_ids], 1)
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits, last, likelihood, hidden, everywhere = [], [], [], [], []
        for number, (model, cache) in enumerate(zip(self.models.values(), caches, strict=True)):
            said, states = self._read(model, **text, past_key_values=cache, use_cache=cache is not None)
            logits.append(said[:, kept])
            last.append(said[:, -1].clone())  # a view would keep what was said of the whole text
            if states is not None:
                hidden.append(states[:, kept])
            if "evidence" in self.rule.needs:
                own = foreseen(said, None if before is None else before.logits[number], input_ids)
                likelihood.append(torch.where(predicted, own, 0.0))
            if "together" in self.rule.beside:
                everywhere.append(said)
        reading = Reading(
            log_prior(tuple(float(record["weight"]) for record in self.config.experts), input_ids.device),
            torch.stack(likelihood) if likelihood else None,
            None if before is None else before.evidence,
            torch.cat(hidden, -1) if hidden else None,
            dict(self.fusion.items()),
            kept,
            with_padding(tokens, attention_mask),
            lambda part: torch.stack([said[:, part] for said in everywhere]),
        )
        joined = self.rule(torch.stack(logits), reading)
        if heard is not None and joined.evidence is not None:
            heard.note(torch.stack(last), joined.evidence[..., -1], tokens)
        loss = None if labels is None else ForCausalLMLoss(joined.logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=joined.logits, past_key_values=past_key_values)

    def _read(self, model: Any, **text: Any) -> tuple[Tensor, Tensor | None]:
        """An expert's logits [batch, position, vocab] of the tokens that all have; its final states if asked for."""
        if "hidden" in self.rule.needs:
            states = model.base_model(**text).last_hidden_state
            said = model.get_output_embeddings()(states)
        else:
            states, said = None, model(**text).logits
        return said[..., : self.config.vocab_size].float(), states

    def _caches(self, cache: Cache | None) -> tuple[list[Cache | None], Heard | None]:
        """Each expert's part of a cache, whose layers it shares, and what was heard, if the rule asks for evidence."""
        models: list[Any] = list(self.models.values())
        if cache is None:
            return [None] * len(models), None
        if cache.get_seq_length() == 0:
            cache.layers = [layer for model in models for layer in DynamicCache(config=model.config).layers]
            cache.layers += [Heard()] * ("evidence" in self.rule.needs)
        left: Iterator[Any] = iter(cache.layers)
        parts: list[Cache | None] = []
        for model in models:
            part = DynamicCache()
            part.layers = list(islice(left, model.config.num_hidden_layers))
            parts.append(part)
        return parts, next(left, None)


def shared(shelf: nn.ModuleDict, key: str, own: nn.Module) -> nn.Module:
    """The part of that name; an expert's own, if it is the first that has it."""
    if key not in shelf:
        shelf[key] = own
    return shelf[key]


def ties(model: nn.Module) -> dict[str, str]:
    """By the name of each weight that another module has too, its name there."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            other = first.setdefault(id(weight), f"{path}.{name}")
            if other != f"{path}.{name}":
                found[f"{path}.{name}"] = other
    return found


def chosen(spec: str) -> Rule:
    """The rule that ``spec`` names, as ``evidence`` or ``evidence:switch=0.01``.

    Raises:
        ValueError: there is none, or it has no such parameter.
    """
    name, _, text = spec.partition(":")
    if name not in RULES:
        raise ValueError(f"There is no rule {name!r} here. There are: {', '.join(RULES)}.")
    values = dict(part.partition("=")[::2] for part in text.split(",") if part)
    defaults: dict[str, Any] = getattr(RULES[name].function, "__kwdefaults__", None) or {}
    if unknown := values.keys() - defaults:
        raise ValueError(f"The rule {name} has no {min(unknown)!r}. It has: {', '.join(defaults) or 'nothing to set'}.")
    return replace(RULES[name], parameters={key: type(defaults[key])(value) for key, value in values.items()})


def follows(tokens: Tensor, mask: Tensor | None, begin: int) -> Tensor:
    """Of new tokens [batch, position], whether each follows another of its text, neither of them padding."""
    new = tokens.shape[1]
    mask = tokens.new_ones(len(tokens), begin + new) if mask is None else mask.long()
    with_start = F.pad(mask, (1, 0)).bool()
    return (with_start[:, 1:] & with_start[:, :-1])[:, -new:]


def positions(logits_to_keep: int | Tensor, tokens: Tensor) -> slice | Tensor:
    """Which positions of ``tokens`` [batch, position] logits are asked for: some, the last few, or with 0 all."""
    if isinstance(logits_to_keep, Tensor):
        return logits_to_keep
    if logits_to_keep == 0:
        return slice(None)
    return torch.arange(tokens.shape[1], device=tokens.device)[-logits_to_keep:]


def foreseen(said: Tensor, before: Tensor | None, tokens: Tensor) -> Tensor:
    """Log-probabilities [batch, position] that an expert gave to ``tokens`` before it read them.

    Args:
        said: its logits after each of them [batch, position, vocab].
        before: its logits before the first [batch, vocab]; None where a text begins, whose first token is given.
    """
    first = said.new_zeros(len(said)) if before is None else log_likelihood(before, tokens[:, 0])
    return torch.cat([first[:, None], log_likelihood(said[:, :-1], tokens[:, 1:])], 1)
