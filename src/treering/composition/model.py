"""Several experts as one Hugging Face model: one substrate, one cache, one distribution over the next token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from treering import backbone
from treering.composition.configuration import CompositionConfig, expert_config
from treering.composition.layout import fitted, shards, substrate_key, write_description, write_shard
from treering.composition.rules import (
    Need,
    Reading,
    Rule,
    adapter_start,
    gate_start,
    most_credible,
    posterior,
    rule,
)
from treering.composition.transcript import Transcript
from treering.errors import TreeringError
from treering.training.loss import log_likelihood

LOGITS_AT_ONCE = 2**24
"""Logits (tokens × vocabulary) that exist at once while a long prompt is weighed: 64 MiB in float32."""


class ComposedModel(PreTrainedModel, GenerationMixin):
    """Experts joined at their output by a rule; everything a Hugging Face causal model does.

    Experts on one substrate keep no embedding of their own: tokens pass through it once, and they all read the same
    vectors. On disk the composition is an ordinary sharded checkpoint, one shard for each substrate, each expert and
    what was fitted on top of them.

    **Sparse decoding.** With the rule ``top_k``, a decoding step runs only the experts that may be among the k most
    credible. One that does not run is credited with probability 1 for every token it has not read, the most that it
    could gain; only when that brings it among the k does it catch up, reading all that it missed in one pass. As its
    true evidence can only be less, no step uses other experts, or other weights, than reading everything would (with
    ``switch`` > 0 this holds for equal priors). Where one expert leads by L nats, the next catching-up comes when the
    leader's own surprises since the last one add up to L: ever more rarely, the longer it leads.
    """

    config_class = CompositionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CompositionConfig) -> None:
        super().__init__(config)
        self.substrates = nn.ModuleDict()
        self.experts = nn.ModuleDict()
        self.fusion = nn.ParameterDict()
        self.depths: list[int] = []
        for record in config.experts:
            # Loading chooses the precision, not what the expert was once stored in.
            expert = AutoModelForCausalLM.from_config(expert_config(record), dtype=torch.get_default_dtype())
            self.depths.append(expert.config.num_hidden_layers)
            if record["substrate"]:
                matrix = nn.Embedding(expert.config.vocab_size, expert.config.hidden_size)
                self.substrates[substrate_key(record["substrate"])] = matrix
                expert.set_input_embeddings(nn.Identity())
            self.experts[record["name"]] = expert
        self.rule: Rule = rule(config.rule)
        if config.fusion:
            self._add_fusion()
        self.post_init()
        # transformers asks only its models' own children what they tie; the experts lie one level deeper.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is ever initialised here: every weight comes from an expert, a substrate or a fit."""

    def get_input_embeddings(self) -> nn.Module:
        """The substrate, if all experts stand on one."""
        if len(self.substrates) != 1 or not all(record["substrate"] for record in self.config.experts):
            raise NotImplementedError("The experts do not share one embedding; give input_ids.")
        return next(iter(self.substrates.values()))

    def get_output_embeddings(self) -> None:
        return None

    def named_experts(self) -> list[tuple[str, PreTrainedModel]]:
        """The experts by name, in order; those on a substrate without an embedding."""
        return list(self.experts.items())  # type: ignore[arg-type]

    @property
    def prior(self) -> Tensor:
        """Log-weights of the experts before any text [expert], normalised."""
        return _log_prior(tuple(float(record["weight"]) for record in self.config.experts), self.device)

    def use(self, spec: str) -> ComposedModel:
        """Join by another rule from now on, as `treering.composition.rules.rule` reads it; returns the model.

        ``gate`` and ``adapter`` begin at exactly `evidence` and `mean` where nothing has been fitted yet.

        Raises:
            TreeringError: there is no such rule, or it needs the hidden states of a family that is not known.
        """
        chosen = rule(spec)
        if "hidden" in chosen.needs:
            if strangers := [name for name, expert in self.named_experts() if not _is_known(expert)]:
                raise TreeringError(
                    f"The rule {chosen.name} reads the experts' final hidden states, and Treering does not know where "
                    f"{', '.join(strangers)} keeps them. Use a rule that needs only distributions, such as evidence."
                )
            self.config.fusion = {chosen.name: None} | (self.config.fusion or {})
            self._add_fusion()
        self.rule, self.config.rule = chosen, str(chosen)
        return self

    def _add_fusion(self) -> None:
        """Give what the configuration says was fitted its parameters, at their start."""
        for name in fitted(self.config.fusion):
            if name not in self.fusion:
                self.fusion[name] = nn.Parameter(self.fusion_start(name), requires_grad=False)

    def fusion_start(self, name: str) -> Tensor:
        """What a ``gate`` or an ``adapter`` is before anything was fitted: see `gate_start`, `adapter_start`."""
        heads = [backbone.head(expert) for _, expert in self.named_experts()]
        start = (
            gate_start(len(heads), sum(head.in_features for head in heads))
            if name == "gate"
            else adapter_start([head.weight.detach()[: self.config.vocab_size] for head in heads])
        )
        return start.to(heads[0].weight)

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

        ``past_key_values`` holds the layers of all experts one after the other, and before them the `Transcript` where
        the rule needs evidence, so that everything which reorders, crops or copies a cache (beam search, assisted
        decoding) works on the composition as on any model.

        Raises:
            TreeringError: the rule weighs tokens and only their embeddings were given, or another rule began the cache.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)
        text = _Text(input_ids, inputs_embeds, attention_mask, position_ids)
        transcript, caches = self._caches(past_key_values, self.rule)
        logits, reading = self._read(text, caches, transcript, self.rule, kept)
        joined = self.rule(logits, reading)
        if transcript is not None and joined.evidence is not None:
            transcript.weights[..., -joined.evidence.shape[-1] :] = joined.evidence
        loss = None if labels is None else ForCausalLMLoss(joined.logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=joined.logits, past_key_values=past_key_values)

    def read(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, hidden: bool = False
    ) -> tuple[Tensor, Reading]:
        """What the experts say of whole texts: logits [expert, batch, position, vocab] and all that rules may ask.

        One pass of the experts serves any number of rules: ``rule("evidence")(*model.read(input_ids))``.

        Args:
            input_ids: [batch, position]; padding, to either side, is where ``attention_mask`` is 0.
            hidden: also the hidden states, for the rules that read them.
        """
        needs: frozenset[Need] = frozenset({"logits", "evidence", "hidden"} if hidden else {"logits", "evidence"})
        everything = replace(self.rule, name="everything", needs=needs)
        transcript, caches = self._caches(None, everything)
        return self._read(_Text(input_ids, None, attention_mask, None), caches, transcript, everything, slice(None))

    def _read(
        self,
        text: _Text,
        caches: Sequence[Cache | None],
        transcript: Transcript | None,
        chosen: Rule,
        kept: slice | Tensor,
    ) -> tuple[Any, Reading]:
        """Let the experts read on, as many of them as the rule needs, and say what they made of it."""
        prior = self.prior
        if transcript is None:
            finals = [self._final(e, text, cache)[:, kept] for e, cache in enumerate(caches)]
            logits = [self._logits(e, final) for e, final in enumerate(finals)] if "logits" in chosen.needs else []
            seen: dict[str, Any] = {}
        else:
            before = transcript.get_seq_length()
            logits, finals, first = self._weigh(text, caches, transcript, chosen, kept, prior)
            new, length = transcript.get_seq_length() - before, transcript.get_seq_length() - first
            seen = {
                "likelihood": transcript.likelihood[..., first:],
                "state": transcript.weights[..., first - 1] if first else None,
                "kept": _from_the_end(kept, new, length),
            }
        hidden = torch.cat(finals, -1) if "hidden" in chosen.needs else None
        reading = Reading(prior, hidden=hidden, fusion=dict(self.fusion.items()), **seen)
        return torch.stack(logits) if logits else None, reading

    def _weigh(
        self,
        text: _Text,
        caches: Sequence[Cache | None],
        transcript: Transcript,
        chosen: Rule,
        kept: slice | Tensor,
        prior: Tensor,
    ) -> tuple[list[Tensor], list[Tensor], int]:
        """Read on, noting in the transcript how the experts did.

        Returns logits and final states at the kept positions, a pair for each expert, and the first position from
        which the transcript changed.
        """
        if text.input_ids is None:
            raise TreeringError(f"The rule {chosen.name} weighs the experts by the tokens they read: give input_ids.")
        before = transcript.get_seq_length()
        transcript.append(text.input_ids)
        tokens = transcript.input_ids
        predicted = _predicted(text.attention_mask, tokens)
        read = [0 if cache is None else cache.get_seq_length() for cache in caches]
        for e, pending in enumerate(transcript.pending):
            if pending is not None:
                said = pending.gather(1, text.input_ids[:, :1])[:, 0]
                transcript.likelihood[e, :, before] = said * predicted[:, before - 1]
            elif (cache := caches[e]) is not None and read[e] == before > 0:
                cache.crop(-1)  # someone cropped it: what the expert said of the new token, it must say again
                read[e] -= 1
        transcript.pending = [None] * len(caches)
        silent = text.input_ids.new_zeros((len(text.input_ids), 1, self.config.vocab_size), dtype=torch.float32)
        logits, finals = [silent] * len(caches), [silent[..., :0]] * len(caches)

        def let_read(experts: Sequence[int]) -> int:
            for e in experts:
                start = read[e]
                final = self._final(e, text.since(start, before, tokens), caches[e])
                finals[e] = final[:, before - start :][:, kept]
                logits[e] = self._logits(e, finals[e])
                whole = logits[e] if logits[e].shape[1] == final.shape[1] else None
                said = self._log_likelihood(e, final, tokens[:, start:], whole)
                transcript.likelihood[e, :, start + 1 :] = said * predicted[:, start:]
                if caches[e] is not None:
                    last = logits[e][:, -1] if isinstance(kept, slice) else self._logits(e, final[:, -1])
                    transcript.pending[e] = last.log_softmax(-1)
            return min(read[e] + 1 for e in experts)

        if chosen.name != "top_k" or before == 0 or text.input_ids.shape[1] > 1:
            return logits, finals, min(before, let_read(range(len(caches))))
        first, running = before, set[int]()
        while late := self._credible(transcript, first, chosen, prior) - running:
            changed = let_read(sorted(late))
            running |= late
            if changed > before:  # they had missed nothing, so nobody's evidence is other than it was
                break
            first = min(first, changed)
        return logits, finals, first

    def _credible(self, transcript: Transcript, first: int, chosen: Rule, prior: Tensor) -> set[int]:
        """The experts that count after the last token, in any row, if what was not read had been certain to them."""
        state = transcript.weights[..., first - 1]
        track = posterior(transcript.likelihood[..., first:], prior, state, chosen.parameters.get("switch", 0.0))
        among = most_credible(track[..., -1], chosen.parameters.get("k", 1))
        return set(among.any(1).nonzero().flatten().tolist())

    def _log_likelihood(self, e: int, final: Tensor, tokens: Tensor, logits: Tensor | None) -> Tensor:
        """Log-probabilities [batch, position] that an expert gives to ``tokens`` [batch, position + 1] but the first.

        Without ``logits`` at hand they are made from the final states a few positions at a time.
        """
        if logits is None:
            step = max(1, LOGITS_AT_ONCE // (len(tokens) * self.config.vocab_size))
            parts = zip(final[:, :-1].split(step, 1), tokens[:, 1:].split(step, 1), strict=True)
            return torch.cat([log_likelihood(self._logits(e, part), part_tokens) for part, part_tokens in parts], 1)
        return log_likelihood(logits[:, :-1], tokens[:, 1:])

    def _final(self, e: int, text: _Text, cache: Cache | None) -> Tensor:
        """What an expert's head reads [batch, position, width]; of a family that is not known, its logits."""
        name, expert = self.named_experts()[e]
        substrate = self.config.experts[e]["substrate"]
        inputs: dict[str, Any] = {"attention_mask": text.attention_mask, "position_ids": text.position_ids}
        if not substrate and text.inputs_embeds is not None:
            raise TreeringError(f"{name} has an embedding of its own, so the composition needs input_ids.")
        if not substrate:
            inputs["input_ids"] = text.input_ids
        elif text.inputs_embeds is None:
            inputs["inputs_embeds"] = self.substrates[substrate_key(substrate)](text.input_ids)
        else:
            inputs["inputs_embeds"] = text.inputs_embeds
        inputs |= {"past_key_values": cache, "use_cache": cache is not None}
        final = expert.base_model(**inputs).last_hidden_state if _is_known(expert) else expert(**inputs).logits
        return final.to(self.device)

    def _logits(self, e: int, final: Tensor) -> Tensor:
        """An expert's logits from its final states, in float32, of the tokens that all experts have."""
        _, expert = self.named_experts()[e]
        logits = backbone.head(expert)(final) if _is_known(expert) else final
        return logits[..., : self.config.vocab_size].float()

    def expert_logits(self, hidden: Tensor) -> Tensor:
        """Logits [expert, batch, position, vocab] from all experts' final states, as ``Reading.hidden`` has them."""
        widths = [backbone.head(expert).in_features for _, expert in self.named_experts()]
        return torch.stack([self._logits(e, own) for e, own in enumerate(hidden.split(widths, -1))])

    def _caches(self, cache: Cache | None, chosen: Rule) -> tuple[Transcript | None, list[Cache | None]]:
        """The transcript, if the rule needs one, and for each expert a view of its own layers in the common cache.

        The layers are shared, not copied. A new cache is given the layers that the experts' own families ask for.
        """
        evidence = "evidence" in chosen.needs
        if cache is None:
            return Transcript(len(self.experts)) if evidence else None, [None] * len(self.experts)
        if cache.get_seq_length() == 0:
            own = [DynamicCache(config=expert.config).layers for _, expert in self.named_experts()]
            cache.layers = [Transcript(len(own))] * evidence + [layer for layers in own for layer in layers]
        transcript = cache.layers[0] if isinstance(cache.layers[0], Transcript) else None
        if evidence != (transcript is not None):
            raise TreeringError(f"This cache was begun by another rule than {chosen}: begin a new one.")
        views, first = list[Cache | None](), int(evidence)
        for depth in self.depths:
            view, after = DynamicCache(), first + depth
            view.layers = cache.layers[first:after]
            views.append(view)
            first = after
        return transcript, views

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Write the configuration and one shard for each substrate, expert and fit, with Hugging Face's index."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        for record, (_, expert) in zip(self.config.experts, self.named_experts(), strict=True):
            record["config"]["dtype"] = str(expert.dtype).removeprefix("torch.")
        for file, tensors in self.shards().items():
            write_shard(tensors, directory / file)
        self.generation_config.save_pretrained(directory)
        write_description(self.config, directory)

    def shards(self) -> dict[str, dict[str, Tensor]]:
        """The tensors to be stored, by file."""
        tied = self.all_tied_weights_keys
        return shards({name: tensor for name, tensor in self.state_dict().items() if name not in tied})


@dataclass(frozen=True)
class _Text:
    """What a forward call is given to read."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None

    def since(self, start: int, before: int, tokens: Tensor) -> _Text:
        """The text for an expert that has read ``start`` of ``tokens``, where the call began after ``before``."""
        if start == before:
            return self
        positions = None
        if self.attention_mask is not None:
            positions = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)[:, start:]
        return _Text(tokens[:, start:], None, self.attention_mask, positions)


@lru_cache
def _log_prior(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Normalised logs of relative weights; kept, since every decoding step asks for them."""
    with torch.inference_mode(False):
        given = torch.tensor(weights, device=device)
        return (given / given.sum()).log()


def _predicted(attention_mask: Tensor | None, tokens: Tensor) -> Tensor:
    """For every token but the first [batch, position - 1], 1 if it follows another of its text, 0 beside padding."""
    mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
    return mask[:, 1:] * mask[:, :-1]


def _from_the_end(kept: slice | Tensor, new: int, length: int) -> slice | Tensor:
    """Positions among the last ``new`` of ``length``, as positions among all."""
    return kept + length - new if isinstance(kept, Tensor) else slice(kept.start or -new, None)


def _is_known(expert: PreTrainedModel) -> bool:
    return expert.config.model_type in backbone.FAMILIES


AutoModelForCausalLM.register(CompositionConfig, ComposedModel)
