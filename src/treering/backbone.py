"""Backbones: the paper's families as Hugging Face configurations, and where each family keeps its parts.

Treering brings no architecture of its own. The paper's (section 3) is exactly GPT-NeoX without parallel residual, with
rotary attention over the whole head and an untied output head, so every model is a plain Hugging Face checkpoint.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from treering.errors import TreeringError
from treering.reading import printable
from treering.recipe import Schema
from treering.substrate import Substrate, require_same
from treering.tokenizer import identity

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hex."""
SubstrateKind = Literal["glyph", "code", "random", "trainable"]


@dataclass(frozen=True)
class Preset:
    """One backbone's shape. ``paper`` is the parameter count the paper prints, ``note`` what it leaves open."""

    layers: int
    d_model: int
    heads: int
    vocab_size: int
    context: int = 1024
    substrate: SubstrateKind = "glyph"
    trained_layers: int | None = None
    paper: str | None = None
    note: str = ""


_STUDY = Preset(9, 1024, 32, 65_536, paper="247.6M")
_HEAD_BIAS = "the paper's 105.0M has a bias on the output head (65,536 more: 104,965,120), a plain GPT-NeoX none"
_UNSTATED = "the paper does not state the depth; 12 layers fit its size"

PRESETS: dict[str, Preset] = {
    "tiny": Preset(2, 64, 2, 1_024, context=128, note="for tests: trains in seconds"),
    "small": Preset(4, 192, 6, 4_096, context=256, note="for two CPU cores: trains in minutes"),
    "medium": Preset(6, 256, 8, 8_192, context=512, note="for two CPU cores: trains in an hour"),
    "pro_bvv": Preset(
        6,
        1024,
        32,
        65_536,
        paper="0.2B",
        note="the paper does not state the shape; 6 layers over 65,536 tokens fit its size",
    ),
    "best_bvv": Preset(16, 1024, 32, 131_072, paper="0.5B"),
    "max_bvv": Preset(12, 1024, 32, 131_072, paper="0.4B", note=_UNSTATED),
    "nemo_bvv": Preset(12, 1024, 32, 131_072, paper="0.4B", note=_UNSTATED + "; on Mistral-Nemo's vocabulary"),
    **{
        f"abs-bvv-{layers}": Preset(layers, 4096, 32, 131_072, paper=f"{1.1 + 0.2 * layers:.1f}B")
        for layers in range(1, 7)
    },
    "study-glyph": replace(_STUDY, note="monolithic on frozen glyphs: 180.5M active"),
    "study-grown": replace(_STUDY, trained_layers=3, note="the last stage, blocks 7-9 and head: " + _HEAD_BIAS),
    "study-trainable": replace(_STUDY, substrate="trainable", note="monolithic, everything trains: 247.6M active"),
    "study-16bit": replace(
        _STUDY,
        substrate="code",
        paper="181M",
        note="the paper's 181M is these 181,525,504 cut, not rounded (or the active count rounded up)",
    ),
    "long-16bit": Preset(16, 1024, 32, 65_536, substrate="code", paper="269.7M"),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        TreeringError: there is none; the message lists all.
    """
    if name not in PRESETS:
        raise TreeringError(f"There is no preset {name!r}. There are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def gpt_neox(shape: Preset) -> GPTNeoXConfig:
    """The paper's backbone (section 3) in Hugging Face terms.

    Raises:
        TreeringError: ``d_model`` is not a multiple of ``heads``, or a head's width is odd (rotary pairs its halves).
    """
    if shape.d_model % shape.heads or (shape.d_model // shape.heads) % 2:
        raise TreeringError(
            f"d_model {shape.d_model} with {shape.heads} heads: each head needs an even, whole width; "
            "choose heads so that d_model / heads is an even number, for instance 32."
        )
    return GPTNeoXConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.d_model,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        use_parallel_residual=False,
        hidden_act="gelu",
        tie_word_embeddings=False,
    )


def with_older_names(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration that says a GPT-NeoX's rotary attention also as transformers 4 and llama.cpp's converter read it.

    Where they do not find it so, the former turns a quarter of each head and says nothing.
    """
    config = copy.deepcopy(config)
    if config.model_type == "gpt_neox":
        config.rotary_pct = config.rope_parameters["partial_rotary_factor"]
        config.rotary_emb_base = config.rope_parameters["rope_theta"]
    return config


Logits = Callable[[Tensor, PreTrainedConfig], Tensor]
"""What a family makes of its head's outputs […, vocab]."""


@dataclass(frozen=True)
class Family:
    """Where a Hugging Face causal language model keeps its parts, as attribute paths from the model, and what it adds.

    Attributes:
        output_norms: names of a block's norms that stand between its layers and the residual stream, if there are any.
        norm_offset: what such a norm adds to its weight.
        logits: what is done to the head's outputs; nothing, if None.
        returns_tuple: a block returns its hidden states as the first of a tuple.
        dropout: fields of the configuration by which a block drops out; where modules hold it, there are none.
        plain: the forward is embedding, blocks, final norm, head, and nothing else: embeddings are neither scaled nor
            added to, and logits are what the head says.
    """

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    output_norms: tuple[str, ...] = ()
    norm_offset: float = 0.0
    logits: Logits | None = None
    returns_tuple: bool = False
    dropout: tuple[str, ...] = ()
    plain: bool = True


def _scaled(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    return logits / config.logits_scaling


def _capped(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


_LLAMA = Family()
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA_2 = Family(output_norms=_POST_NORMS, norm_offset=1.0, logits=_capped, plain=False)

FAMILIES: dict[str, Family] = {
    "gpt_neox": Family("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,
    "smollm3": _LLAMA,
    "olmo2": Family(output_norms=_POST_NORMS),
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "mixtral": _LLAMA,
    "falcon": Family(
        "transformer.word_embeddings",
        "transformer.h",
        "transformer.ln_f",
        returns_tuple=True,
        dropout=("hidden_dropout", "attention_dropout"),
    ),
    "gemma": Family(plain=False),  # scales embeddings
    "gemma2": _GEMMA_2,  # scales embeddings, caps logits
    "gemma3_text": _GEMMA_2,
    "granite": Family(logits=_scaled, plain=False),  # scales embeddings and logits
    "gpt2": Family("transformer.wte", "transformer.h", "transformer.ln_f", "lm_head", plain=False),  # adds positions
}
"""The families that can grow. Those that are not plain cannot stand on a substrate, which is read as it is."""

PER_BLOCK = ("layer_types", "no_rope_layers")
"""Fields of a configuration that are lists with an entry for each block."""


def family(config: PreTrainedConfig) -> Family:
    """Where the parts of a model with this configuration are.

    Raises:
        TreeringError: the family is not supported, with the reason and the list of those that are.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise TreeringError(
            f"Models of family {config.model_type!r} are not supported: Treering must know all that stands between "
            "tokens and logits beside embedding, blocks, final norm and head. "
            f"Supported: {', '.join(FAMILIES)}."
        ) from None


UNLIMITED = 2**31
"""Context of a model that knows no longest text."""


def context_length(config: PreTrainedConfig) -> int:
    """How many tokens a model can read; families with relative positions alone (Bloom, Mamba) know no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether a cache of keys and values carries what the model has read; state space models keep something else."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def per_block(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """What the configuration says of each block, by the field's name; fields that say nothing are left out."""
    return {name: list(values) for name in PER_BLOCK if (values := getattr(config, name, None))}


def embedding(model: PreTrainedModel) -> nn.Embedding:
    """The token embedding, ``weight`` [vocab, d_model]."""
    return attrgetter(family(model.config).embedding)(model)


def head(model: PreTrainedModel) -> nn.Linear:
    """The output head, ``weight`` [vocab, d_model]."""
    return attrgetter(family(model.config).head)(model)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The Transformer blocks, lowest first."""
    return attrgetter(family(model.config).blocks)(model)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the head."""
    return attrgetter(family(model.config).final_norm)(model)


def below_blocks(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """What a text goes through before the first block, by name: the embedding, and what a family adds to it."""
    row = family(model.config)
    above = tuple(f"{path}." for path in (row.blocks, row.final_norm, row.head))
    return ((name, parameter) for name, parameter in model.named_parameters() if not name.startswith(above))


def set_blocks(model: PreTrainedModel, stack: nn.ModuleList) -> None:
    """Put other Transformer blocks in the place of a model's own."""
    _set(model, family(model.config).blocks, stack)


def set_final_norm(model: PreTrainedModel, norm: nn.Module) -> None:
    """Put another module in the place of the norm below the head."""
    _set(model, family(model.config).final_norm, norm)


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """What the model's family makes of the head's outputs […, vocab]; None if they are the logits."""
    finish, config = family(model.config).logits, model.config
    return (lambda outputs: finish(outputs, config)) if finish else None


def linear_layers(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a block by their path in it; GPT-2's, which are stored the other way round, among them."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def numbers_a_token(block: nn.Module, config: PreTrainedConfig) -> int:
    """How many numbers of a block's matrices a token is multiplied by: of a mixture's experts, those it is sent to."""
    everyones = sum(p.numel() for p in block.parameters() if p.dim() == 2)
    an_expert = sum(p[0].numel() for p in block.parameters() if p.dim() == 3)
    return everyones + (config.num_experts_per_tok * an_expert if an_expert else 0)


def residual_outputs(block: nn.Module) -> list[nn.Parameter]:
    """Matrices and biases that a block's attention and MLP end in, those of all its experts among them."""
    names = {"dense", "dense_4h_to_h", "o_proj", "down_proj", "c_proj"}
    return [parameter for name, parameter in block.named_parameters() if names & set(name.split(".")[-2:])]


def silence(block: nn.Module, family: Family) -> None:
    """Let a block add nothing to the residual stream, until it trains.

    Where a norm follows its last layers, that norm's weight is what becomes zero: behind it, the least output of the
    layers would be blown up to the norm's own size.
    """
    norms = [block.get_parameter(f"{name}.weight") for name in family.output_norms]
    with torch.no_grad():
        for output in norms or residual_outputs(block):
            output.fill_(-family.norm_offset if norms else 0.0)


def _set(model: PreTrainedModel, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(attrgetter(parent)(model), name, module)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one model: what it stores, and which of them train."""

    total: int
    active: int

    @property
    def frozen(self) -> int:
        """Those that never change."""
        return self.total - self.active


def count_parameters(shape: Preset) -> ParameterCount:
    """Total and active parameters of a preset, counted on the real Hugging Face model (without its memory).

    A 16-bit code counts as the paper counts it, one number per token and bit; the checkpoint holds it expanded to an
    ordinary embedding matrix.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpt_neox(shape))
    stored = embedding(model).weight.numel()
    rest = sum(p.numel() for p in model.parameters()) - stored
    if shape.substrate == "code":
        stored = shape.vocab_size * (shape.vocab_size - 1).bit_length()
    old_blocks = list(blocks(model))[: -shape.trained_layers] if shape.trained_layers else []
    idle = sum(p.numel() for block in old_blocks for p in block.parameters())
    active = rest - idle + (stored if shape.substrate == "trainable" else 0)
    return ParameterCount(total=rest + stored, active=active)


def dock(config: PreTrainedConfig, substrate: Substrate, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Put a freshly initialised backbone on a substrate and freeze the interface.

    The embedding becomes a copy of the substrate's matrix (untrained, or the start of training for the trainable
    control), and the substrate's fingerprint goes into the configuration, from where every checkpoint carries it.
    Initial weights come from torch's global random state: seed it first.

    Raises:
        TreeringError: vocabulary or width differ, the tokenizer is not the substrate's, or the family is unsupported or
            not plain.
    """
    if not family(config).plain:
        raise TreeringError(
            f"Models of family {config.model_type!r} do more with an embedding than to read it, so they cannot stand "
            f"on a substrate. Those that can: {', '.join(name for name, row in FAMILIES.items() if row.plain)}."
        )
    vocab_size, d_model = substrate.matrix.shape
    if (config.vocab_size, config.hidden_size) != (vocab_size, d_model):
        raise TreeringError(
            f"The backbone expects {config.vocab_size} tokens of width {config.hidden_size}, the substrate has "
            f"{vocab_size} of width {d_model}. Build the substrate with that --d-model, or change the backbone's."
        )
    require_same(substrate, tokenizer)
    config.tie_word_embeddings = False
    config.bos_token_id = tokenizer.eos_token_id  # documents begin after it
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.treering = {
        "fingerprint": substrate.fingerprint,
        "frozen": substrate.frozen,
        "tokenizer": identity(tokenizer),
    }
    model = AutoModelForCausalLM.from_config(config)
    weight = embedding(model).weight
    with torch.no_grad():
        weight.copy_(substrate.matrix)
    weight.requires_grad_(not substrate.frozen)
    return model


class Standing(Schema):
    """What a checkpoint stands on: the substrate's fingerprint, whether it was frozen, the tokenizer's identity."""

    model_config = ConfigDict(strict=True)

    fingerprint: Sha256
    frozen: bool
    tokenizer: Sha256


class GrownOn(Schema):
    """What a branch was grown on: what its makers call that model, and how many of its blocks the branch left alone.

    Attributes:
        trunk: the name of these blocks together (``treering.composition.bases.trunk_name``).
        embedding, head: the names of the model's (``treering.composition.parts``).
    """

    model_config = ConfigDict(strict=True)

    base: Annotated[str, Field(max_length=1_000)]
    blocks: Annotated[int, Field(ge=1, le=10_000)]
    trunk: Sha256 | None = None
    embedding: Sha256 | None = None
    head: Sha256 | None = None


def grown_on(config: PreTrainedConfig) -> GrownOn | None:
    """What a configuration says that its model was grown on; None of a model that is no branch.

    Raises:
        TreeringError: what it says is damaged.
    """
    return _noted(config, "treering_trunk", GrownOn, "trunk")


def standing(config: PreTrainedConfig) -> Standing | None:
    """The substrate that a configuration names, or None for a model that Treering did not dock.

    Raises:
        TreeringError: what it says of the substrate is damaged.
    """
    return _noted(config, "treering", Standing, "substrate")


Note = TypeVar("Note", Standing, GrownOn)


def _noted(config: PreTrainedConfig, field: str, schema: type[Note], what: str) -> Note | None:
    """What Treering wrote into a field of a model's configuration, if it did."""
    record = getattr(config, field, None)
    if record is None:
        return None
    try:
        return schema.model_validate(record)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(printable(str(part)) for part in e["loc"]) for e in error.errors()}))
        raise TreeringError(
            f"What the model's config.json says of its {what} is damaged ({field}: {fields}). Copy the model again."
        ) from None
