"""Several experts as one Hugging Face model: one substrate, one cache, one distribution over the next token."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import create_repo
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from treering import backbone
from treering.composition import fingerprints, parts
from treering.composition.arrangement import arrange, whole
from treering.composition.assembly import assemble
from treering.composition.caches import lay_out, views
from treering.composition.configuration import CompositionConfig, expert_config
from treering.composition.layout import (
    INDEX,
    fitted,
    shards,
    substrate_key,
    write_description,
    write_shard,
)
from treering.composition.parts import is_known
from treering.composition.posterior import log_prior
from treering.composition.reader import Below, Reader, Stem, Substrate, Text, said
from treering.composition.repeats import with_padding
from treering.composition.rules import Joined, Need, Reading, Rule, adapter_start, gate_start
from treering.composition.saving import precision, require_plain, require_size, stored
from treering.composition.schedule import read_on
from treering.composition.specs import rule
from treering.composition.transcript import Transcript
from treering.errors import TreeringError


class Fusion(nn.ParameterDict):
    """What was fitted on top of the experts, by name; a call lets accelerate fetch what it has put elsewhere."""

    __call__ = nn.Module.__call__

    def forward(self) -> dict[str, Tensor]:
        """All of it."""
        return dict(self.items())


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
        attention = config._attn_implementation
        super().__init__(config)
        config._attn_implementation = attention  # the experts' alone: a composition has none, whose default would count
        asked = {"attn_implementation": attention} if attention else {}
        self.tree = config.tree
        self.substrates, self.trunks = nn.ModuleDict(), nn.ModuleDict()
        self.norms, self.heads, self.experts = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self._ties = assemble(self, config.experts, self.tree, asked)
        self.fusion = Fusion()
        self.rule: Rule = rule(config.rule)
        if config.fusion:
            self._add_fusion()
        self._freeze()
        self.post_init()
        # transformers asks only its models' own children of what they know; the experts lie one level deeper.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        inside: list[Any] = [*self.experts.values(), *self.trunks.values()]
        for known in ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules_strict"):
            setattr(self, known, getattr(self, known).union(*(getattr(model, known) for model in inside)))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is ever initialised here: every weight comes from an expert, a substrate or a fit."""

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Which weights are another's, as transformers asks."""
        return super().get_expanded_tied_weights_keys(True) if all_submodels else self._ties

    def get_input_embeddings(self) -> nn.Module:
        """The substrate, if all experts stand on one."""
        if len(self.substrates) != 1 or not all(place.embedding for place in self.tree.places.values()):
            raise NotImplementedError("The experts do not share one embedding; give input_ids.")
        return next(iter(self.substrates.values()))

    def get_output_embeddings(self) -> None:
        return None

    def named_experts(self) -> list[tuple[str, PreTrainedModel]]:
        """The experts by name, in order; of one that stands on a substrate or a trunk, what is above that."""
        return list(self.experts.items())  # type: ignore[arg-type]

    def expert(self, name: str) -> PreTrainedModel:
        """An expert as the plain model that it is alone; its weights are the composition's own, not copied.

        Raises:
            TreeringError: there is no such expert.
        """
        record = next((record for record in self.config.experts if record["name"] == name), None)
        if record is None:
            raise TreeringError(f"There is no expert {name!r}. There are: {', '.join(self.experts)}.")
        tensors = whole(self.tree, record, self.state_dict())
        config, upper = expert_config(record), dict(self.named_experts())[name]
        with init_empty_weights(include_buffers=False):
            alone = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, attn_implementation=upper.config._attn_implementation
            )
        alone.load_state_dict(tensors, strict=False, assign=True)
        alone.tie_weights()
        return alone.requires_grad_(False).eval()

    @property
    def prior(self) -> Tensor:
        """Log-weights of the experts before any text [expert], normalised."""
        return log_prior(self._weights, self.device)

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(float(record["weight"]) for record in self.config.experts)

    @property
    def device(self) -> torch.device:
        """Of the first parameter with numbers; one that accelerate keeps elsewhere until it is used has none."""
        real = (parameter.device for parameter in self.parameters() if not parameter.is_meta)
        return next(real, torch.device("meta"))

    def use(self, spec: str) -> ComposedModel:
        """Join by another rule from now on, as `treering.composition.rule` reads it; returns the model.

        ``gate`` and ``adapter`` begin at exactly `evidence` and `mean` where nothing has been fitted yet.

        Raises:
            TreeringError: there is no such rule, or it needs the hidden states of a family that is not known.
        """
        chosen = rule(spec)
        if "hidden" in chosen.needs:
            if strangers := [name for name, expert in self.named_experts() if not is_known(expert.config)]:
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
                self.fusion[name] = nn.Parameter(self.fusion_start(name))
        self._freeze()

    def _freeze(self) -> None:
        """Let training leave substrates, whose fingerprints would be wrong then, and what was fitted as they are."""
        for record in self.config.experts:
            if record["substrate"]:
                self.substrates[substrate_key(record["substrate"])].requires_grad_(False)
        self.fusion.requires_grad_(False)

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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Joined logits [batch, position, vocab] of the next token, and with ``labels`` [batch, position] their loss.

        ``past_key_values`` holds the layers of all experts one after the other, and before them the `Transcript` where
        the rule needs evidence, so that everything which reorders, crops or copies a cache (beam search, assisted
        decoding) works on the composition as on any model.

        Raises:
            TreeringError: the rule weighs tokens and only their embeddings were given, another rule began the cache, or
                hidden states or attentions were asked for, which only single experts have.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        for name, wanted in asked.items():
            if getattr(self.config, name) if wanted is None else wanted:
                raise TreeringError(
                    f"A composition has no layers of its own that {name} could give. Ask an expert: "
                    f"model.expert(NAME)(…, {name}=True), or model.read(input_ids, hidden=True) for all final states."
                )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        text = Text(input_ids, inputs_embeds, attention_mask, position_ids)
        kept = _among_new(logits_to_keep, text.length)
        transcript, readers = self._readers(past_key_values, self.rule)
        if past_key_values is not None and transcript is None:
            text = replace(text, begin=past_key_values.get_seq_length())
        joined = self.join(text, readers, transcript, kept)
        loss = None if labels is None else ForCausalLMLoss(joined.logits, labels, self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=joined.logits, past_key_values=past_key_values)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def join(
        self, text: Text, readers: Sequence[Reader], transcript: Transcript | None, kept: slice | Tensor
    ) -> Joined:
        """Let the experts read on, join what they say, and note what the rule learnt of them."""
        joined = self.rule(*self._read(text, readers, transcript, self.rule, kept))
        if transcript is not None and joined.evidence is not None:
            rows, _, changed = joined.evidence.shape
            transcript.evidence[:rows, :, -changed:] = joined.evidence
        return joined

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        """Lay the cache out before generation asks its layers for anything, such as to record what they let go of."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # type: ignore[misc]
        if (cache := model_kwargs.get("past_key_values")) is not None and cache.get_seq_length() == 0:
            lay_out(cache, *self._configs(), self.rule)
            if generation_config.is_assistant:
                cache.activate_past_recording()

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
        transcript, readers = self._readers(None, everything)
        return self._read(Text(input_ids, None, attention_mask, None), readers, transcript, everything, slice(0, None))

    def _read(
        self,
        text: Text,
        readers: Sequence[Reader],
        transcript: Transcript | None,
        chosen: Rule,
        kept: slice | Tensor,
    ) -> tuple[Any, Reading]:
        """Let the experts read on, as many of them as the rule needs, and say what they made of it."""
        prior = log_prior(self._weights, text.device)
        if transcript is None:
            finals = [reader.final(text) for reader in readers]
            logits = said(readers, [own[:, kept] for own in finals]) if "logits" in chosen.needs else []
            seen: dict[str, Any] = {}
        else:
            begin = transcript.get_seq_length()
            logits, finals, changed = read_on(readers, transcript, text, chosen, prior, kept)
            again = begin - changed
            seen = {
                "likelihood": transcript.likelihood[..., changed:],
                "state": transcript.evidence[..., changed - 1] if changed else None,
                "kept": slice(kept.start + again, None) if isinstance(kept, slice) else kept + again,
                "tokens": with_padding(transcript.input_ids, text.attention_mask),
                "said": lambda part: torch.stack(said(readers, [own[:, part] for own in finals])),
            }
        hidden = torch.cat([own[:, kept] for own in finals], -1) if "hidden" in chosen.needs else None
        joint: Any = torch.stack(logits) if logits else None
        if transcript is not None and isinstance(kept, slice) and kept.start == 0:
            seen["said"] = lambda part: joint[:, :, part]
        return joint, Reading(prior, hidden=hidden, fusion=self.fusion(), **seen)

    def _readers(self, cache: Cache | None, chosen: Rule) -> tuple[Transcript | None, list[Reader]]:
        """The transcript, if the rule needs one, and the experts, each with its foothold and its part of the cache."""
        begin = 0 if cache is None else cache.get_seq_length()
        layers = views(cache, *self._configs(), chosen)
        below: dict[str | None, Below] = {key: Substrate(matrix) for key, matrix in self.substrates.items()}
        for key, trunk in self.tree.trunks.items():
            stem: Any = self.trunks[key]
            below[key] = Stem(below[trunk.below or trunk.embedding], stem, layers.trunks[key], layers.kept.get(key))
        readers = []
        for name, expert in self.named_experts():
            place = self.tree.places[name]
            foot = below.get(place.trunks[-1] if place.trunks else place.embedding)
            readers.append(Reader(name, expert, foot, self.config.vocab_size, layers.experts[name], begin))
        return layers.transcript, readers

    def _configs(self) -> tuple[dict[str, PreTrainedConfig], dict[str, PreTrainedConfig]]:
        """The configurations of the trunks by key, and of the experts' own blocks by name."""
        trunks: dict[str, Any] = dict(self.trunks.items())
        return {k: m.config for k, m in trunks.items()}, {name: expert.config for name, expert in self.named_experts()}

    def expert_logits(self, hidden: Tensor) -> Tensor:
        """Logits [expert, batch, position, vocab] from all experts' final states, as ``Reading.hidden`` has them."""
        _, readers = self._readers(None, self.rule)
        widths = [backbone.head(reader.model).in_features for reader in readers]
        return torch.stack([reader.logits(own) for reader, own in zip(readers, hidden.split(widths, -1), strict=True)])

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a composition as transformers does, if its files are what its configuration records of them.

        What transformers lets train is frozen again.

        Raises:
            TreeringError: the configuration is damaged, or a file is not what was written; see ``fingerprints.verify``.
        """
        place = pretrained_model_name_or_path
        loaded = super().from_pretrained(place, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze()
        if place is not None and kwargs.get("state_dict") is None:
            where = ("cache_dir", "revision", "subfolder", "token", "local_files_only", "proxies")
            index = cached_file(place, INDEX, **{name: kwargs[name] for name in where if name in kwargs})
            fingerprints.verify(model.config, Path(str(index)).parent)
            if model.device.type != "meta":
                fingerprints.record_substrates(model.config, model.shards())  # in the precision that they have here
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        distributed_checkpoint: bool = False,
        **hub: Any,
    ) -> None:
        """Write the configuration and one shard for each substrate, expert and fit, with Hugging Face's index.

        The records' fingerprints become those of what is written.

        Args:
            is_main_process: whether this process writes.
            state_dict: the tensors to write instead of the model's own; with the same names and shapes.
            push_to_hub: also upload it, to ``repo_id`` (the directory's name by default); ``token`` and ``hub`` are
                what else the method of that name takes.
            max_shard_size: of a shard; none is divided.
            save_peft_format, save_original_format: there is but one format.

        Raises:
            TreeringError: a substrate, which is frozen, changed since the composition was made or loaded; a shard is
                larger than allowed, ``state_dict`` is not of this composition, or a ``variant`` or a
                ``distributed_checkpoint`` was asked for.
        """
        require_plain({"variant": variant, "distributed_checkpoint": distributed_checkpoint})
        if not push_to_hub:
            require_plain(hub)
        if not is_main_process:
            return
        directory = Path(save_directory)
        config, shards = self._to_save(state_dict)
        require_size(shards, max_shard_size)
        directory.mkdir(parents=True, exist_ok=True)
        before = self._get_files_timestamps(directory)
        fingerprints.record(config, directory, shards)
        for file, tensors in shards.items():
            write_shard(tensors, directory / file)
        self.generation_config.save_pretrained(directory)
        write_description(config, directory)
        if push_to_hub:
            self._upload(directory, before, token, **hub)

    def as_stored(self) -> PreTrainedConfig:
        """The configuration that would be written now, with the fingerprints of all parts."""
        config, shards = self._to_save(None)
        fingerprints.record(config, Path(), shards)
        return config

    def _upload(
        self,
        directory: Path,
        before: dict[str, float],
        token: str | bool | None,
        repo_id: str | None = None,
        **hub: Any,
    ) -> None:
        """Upload the files of a directory that are newer than ``before`` says, as transformers does."""
        commit = {"commit_message", "commit_description", "create_pr", "revision"}
        own = {name: hub.pop(name) for name in commit & hub.keys()}
        repository = create_repo(repo_id or directory.name, token=token, exist_ok=True, **hub).repo_id
        self._upload_modified_files(directory, repository, before, token=token, **own)

    def _to_save(self, state: Mapping[str, Tensor] | None) -> tuple[PreTrainedConfig, dict[str, dict[str, Tensor]]]:
        """The configuration that tells of a composition's weights as they are now, and those by file.

        Weights that trained are other parts than those that were joined, and so have other names.
        """
        tensors = stored(self, state)
        wholes = {record["name"]: whole(self.tree, record, tensors) for record in self.config.experts}
        records, digest = [], lru_cache(None)(parts.digest)  # a trunk's tensors are those of many experts
        for record in self.config.experts:
            own = wholes[record["name"]]
            path = parts.path(expert_config(record), own, digest) if record.get("path") else None
            described = record["config"] | {"dtype": precision(own)}
            records.append(record | {"path": path, "config": described})
        config = copy.deepcopy(self.config)
        config.experts = records
        arranged = arrange(config.tree, records, wholes)
        arranged |= {name: tensor for name, tensor in tensors.items() if name.startswith("fusion.")}
        return config, shards(arranged)

    def shards(self, state: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """The tensors to be stored by file: the model's own, or those of ``state``."""
        return shards(stored(self, state))


def _among_new(logits_to_keep: int | Tensor, new: int) -> slice | Tensor:
    """The positions to keep, none of them negative, of so many ``new`` ones."""
    if isinstance(logits_to_keep, Tensor):
        return torch.arange(new, device=logits_to_keep.device)[logits_to_keep]
    return slice(max(0, new - logits_to_keep) if logits_to_keep else 0, None)


AutoModelForCausalLM.register(CompositionConfig, ComposedModel)
