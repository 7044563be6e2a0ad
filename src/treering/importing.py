"""Checkpoints in the format of the paper's author, as plain GPT-NeoX ones: the same numbers under other names.

His models are decoder-only, pre-LayerNorm, GELU, with rotary attention over the whole head and an output head of its
own (``docs/import.md``), but bring Python code for it. None of it is run here: tensors are read, checked by name and
shape against what the architecture must have, and renamed. Two things are computed: the rows of queries and keys are
reordered where rotary attention turns neighbours, and a bias of the head, which GPT-NeoX lacks, goes into its weights.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AliasChoices, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from treering import tokenizer as tokenizers
from treering.backbone import Preset, gpt_neox, with_older_names
from treering.composition.loading import weights
from treering.composition.schema import MOST_CONFIGURATION
from treering.errors import TreeringError
from treering.headers import header
from treering.location import locate, own_file_of
from treering.output import explain_full_disk, require_new, staged_directory
from treering.reading import inside, printable, read_json
from treering.recipe import Schema

Rotary = Literal["halves", "pairs"]
"""What turns together in a head of width 2n: element i and element n + i, or the neighbours 2i and 2i + 1."""
Tensors = Mapping[str, Tensor]

Module = Annotated[str, Field(pattern=r"^[\w.]{1,200}$")]
Count = Annotated[int, Field(ge=1, lt=2**31)]

BASE = 10_000.0
"""Of the rotary frequencies."""
_LISTED = 40


class Names(Schema):
    """What a checkpoint calls its modules, each of them a ``weight`` and perhaps a ``bias``; those of a block in it."""

    embedding: Module = "token_embeddings"
    blocks: Module = "transformer_layers"
    attention_norm: Module = "input_layernorm"
    query: Module = "self_attn.q_proj"
    key: Module = "self_attn.k_proj"
    value: Module = "self_attn.v_proj"
    output: Module = "self_attn.o_proj"
    mlp_norm: Module = "post_attention_layernorm"
    up: Module = "mlp.0"
    down: Module = "mlp.2"
    final_norm: Module = "final_layernorm"
    head: Module = "lm_head"


class Shape(Schema):
    """What his ``config.json`` says of a model's size; whatever else it says is left alone."""

    model_config = ConfigDict(extra="ignore", strict=True)

    vocab_size: Count
    d_model: Count
    n_layer: Annotated[int, Field(ge=1, le=10_000)]
    n_head: Count
    block_size: Count
    n_embed: Annotated[Count | None, Field(validation_alias=AliasChoices("n_embed", "n_embd"))] = None
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5


def import_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    rotary: Rotary,
    names: Names | None = None,
    part: str | None = None,
) -> bool:
    """Write a checkpoint of the paper's author, in a directory or on the hub, as a plain GPT-NeoX one in float32.

    Its tokenizer goes with it, if it has one. Nothing says what its embedding was made from, so the model names no
    substrate. Neither code nor anything but tensors out of a pickle is run.

    Args:
        rotary: what turns together in its attention; its tensors do not say.
        part: read only what stands below this module, which is one of several experts in one checkpoint.

    Returns:
        Whether a tokenizer went with it.

    Raises:
        TreeringError: there is no such checkpoint, it is damaged, a tensor is missing, too many or of another shape, a
            file is a link, the tokenizer has more tokens than the model, or the output exists.
    """
    require_new(output)
    place = locate(source)
    shape, tokenizer = _shape(place), _tokenizer(source, place)
    if tokenizer is not None and len(tokenizer) > shape.vocab_size:
        raise TreeringError(
            f"The tokenizer of {printable(place)} has {len(tokenizer):,} tokens, its model {shape.vocab_size:,}. "
            "They do not belong together; copy both again."
        )
    config, tensors = convert(shape, _below(_tensors(place), part), names or Names(), rotary)
    if tokenizer is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    with staged_directory(output) as staging, explain_full_disk(Path(output).parent):
        with_older_names(config).save_pretrained(staging)
        save_file(tensors, staging / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizers.save(tokenizer, staging)
    return tokenizer is not None


def convert(shape: Shape, tensors: Tensors, names: Names, rotary: Rotary) -> tuple[GPTNeoXConfig, dict[str, Tensor]]:
    """The configuration and the tensors of the GPT-NeoX model that computes what his does.

    Raises:
        TreeringError: a tensor is missing, too many or of another shape; embeddings are narrower than the model.
    """
    if shape.n_embed not in (None, shape.d_model):
        raise TreeringError(
            f"Its embeddings are {shape.n_embed} wide and repeated to the model's {shape.d_model}. In which order is "
            "not known, so such a model cannot be imported."
        )
    config = gpt_neox(
        Preset(shape.n_layer, shape.d_model, shape.n_head, shape.vocab_size, context=shape.block_size, note="imported")
    )
    config.layer_norm_eps, config.architectures = shape.layer_norm_eps, [GPTNeoXForCausalLM.__name__]
    config.dtype = torch.float32
    width = shape.d_model // shape.n_head
    known = {name: tensor for name, tensor in tensors.items() if not _is_frequencies(name, tensor, width)}
    modules = _modules(shape, names)
    _require_whole(known, modules)

    def read(module: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a module; one that it lacks is zero."""
        weight = known[f"{module}.weight"].float()
        bias = known.get(f"{module}.bias")
        return weight, torch.zeros(len(weight)) if bias is None else bias.float()

    found = {"gpt_neox.embed_in.weight": read(names.embedding)[0]}
    for number in range(shape.n_layer):
        theirs, ours = f"{names.blocks}.{number}", f"gpt_neox.layers.{number}"
        kept = {
            "input_layernorm": names.attention_norm,
            "attention.dense": names.output,
            "post_attention_layernorm": names.mlp_norm,
            "mlp.dense_h_to_4h": names.up,
            "mlp.dense_4h_to_h": names.down,
        }
        for ours_in_block, module in kept.items():
            found |= _module(f"{ours}.{ours_in_block}", *read(f"{theirs}.{module}"))
        query, key, value = (read(f"{theirs}.{module}") for module in (names.query, names.key, names.value))
        weight, bias = (fused(each, shape.n_head, rotary) for each in zip(query, key, value, strict=True))
        found |= _module(f"{ours}.attention.query_key_value", weight, bias)
    scale, offset = read(names.final_norm)
    head, bias = read(names.head)
    if bias.any():
        scale, offset, head = fold(scale, offset, head, bias)
    found |= _module("gpt_neox.final_layer_norm", scale, offset) | {"lm_head.weight": head}
    return config, {name: tensor.contiguous() for name, tensor in found.items()}


def fused(projections: Iterable[Tensor], heads: int, rotary: Rotary) -> Tensor:
    """Queries', keys' and values' rows [d_model, …] as GPT-NeoX stores them: head by head, [3 · d_model, …].

    It turns the halves of a head; where neighbours turned, even rows come first in each head of queries and keys.
    """
    query, key, value = (each.unflatten(0, (heads, -1)) for each in projections)
    if rotary == "pairs":
        query, key = (torch.cat([each[:, 0::2], each[:, 1::2]], 1) for each in (query, key))
    return torch.cat([query, key, value], 1).flatten(0, 1)


def fold(scale: Tensor, offset: Tensor, head: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A final norm and a head without a bias that compute what these do with one.

    What LayerNorm divides, n, sums to zero, so a row of the head may be shifted by any number as long as it reads n
    alone. With a norm of scale 1 and offset 1, a row reads n + 1: shifted until it sums to what a text without content
    would be told, ``head @ offset + bias``, it adds just that.

    Args:
        scale, offset: [d_model], of the norm.
        head: [vocab, d_model].
        bias: [vocab].
    """
    rows = head.double() * scale.double()
    told = head.double() @ offset.double() + bias.double()
    shifted = rows + ((told - rows.sum(1)) / len(scale))[:, None]
    return torch.ones_like(scale), torch.ones_like(offset), shifted.float()


def _module(name: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _modules(shape: Shape, names: Names) -> dict[str, tuple[int, ...]]:
    """The modules that there must be, and the shapes of their weights."""
    d = shape.d_model
    square, ends = (d, d), {names.embedding: (shape.vocab_size, d), names.final_norm: (d,)}
    block: dict[str, tuple[int, ...]] = dict.fromkeys((names.query, names.key, names.value, names.output), square)
    block |= {names.attention_norm: (d,), names.mlp_norm: (d,), names.up: (4 * d, d), names.down: (d, 4 * d)}
    inner = {f"{names.blocks}.{n}.{name}": size for n in range(shape.n_layer) for name, size in block.items()}
    return {**ends, names.head: (shape.vocab_size, d), **inner}


def _require_whole(tensors: Tensors, modules: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint has the tensors that it must have, and no others."""
    needed = {f"{module}.weight": size for module, size in modules.items()}
    allowed = needed | {f"{module}.bias": size[:1] for module, size in modules.items()}
    unknown, missing = (
        [name for name in tensors if name not in allowed],
        [name for name in needed if name not in tensors],
    )
    if unknown or missing:
        raise TreeringError(
            "The checkpoint's tensors are not called what was expected.\n"
            f"Not known: {_templates(unknown)}\nNot there: {_templates(missing)}\n"
            "Say what it calls its modules, by --names FILE.yaml (docs/import.md); of several experts in one "
            "checkpoint, import each by --part MODULE and join them by treering compose."
        )
    for name, tensor in tensors.items():
        if tensor.shape != allowed[name] or not tensor.is_floating_point():
            raise TreeringError(
                f"Tensor {name} is {list(tensor.shape)} of {tensor.dtype}, where {list(allowed[name])} of floating "
                "point numbers were expected: its architecture differs from the paper's, or it is damaged."
            )


def _templates(names: Iterable[str]) -> str:
    """Names with the first number, which is a block's, as N; each once."""
    listed = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", printable(name), count=1) for name in names))
    return ", ".join([*listed[:_LISTED], *(["…"] if len(listed) > _LISTED else [])]) or "nothing"


def _is_frequencies(name: str, tensor: Tensor, width: int) -> bool:
    """Whether a tensor is a table of the very frequencies that GPT-NeoX computes for a head of that width."""
    expected = BASE ** (-torch.arange(0, width, 2) / width)
    return name.endswith("inv_freq") and tensor.shape == expected.shape and expected.allclose(tensor.float(), rtol=1e-4)


def _below(tensors: Tensors, part: str | None) -> Tensors:
    """The tensors of a module, named as in it; all, if none is given."""
    if part is None:
        return tensors
    found = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
    if not found:
        raise TreeringError(f"There is no tensor below {printable(part)}. There are: {_templates(tensors)}")
    return found


def _shape(place: str) -> Shape:
    path = own_file_of(place, CONFIG_NAME)
    if path is None:
        raise TreeringError(f"{printable(place)} has no {CONFIG_NAME}, or the hub cannot be reached.")
    try:
        return Shape.model_validate(read_json(path, MOST_CONFIGURATION))
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(printable(str(part)) for part in e["loc"]) for e in error.errors()}))
        raise TreeringError(
            f"{path} is not a configuration of the paper's author ({fields or 'no fields'}). One has vocab_size, "
            "d_model, n_layer, n_head and block_size. Models that transformers knows need no import."
        ) from None


def _tokenizer(source: str | os.PathLike[str], place: str) -> PreTrainedTokenizerFast | None:
    return tokenizers.load(source) if own_file_of(place, "tokenizer.json") else None


def _tensors(place: str) -> dict[str, Tensor]:
    """A checkpoint's tensors, mapped from its files rather than read."""
    if pickled := None if _has_safetensors(place) else own_file_of(place, WEIGHTS_NAME):
        return _unpickled(pickled)
    found = dict[str, Tensor]()
    for file in weights(place):
        path = inside(place, file.name) if Path(place).is_dir() else file
        header(path)
        found |= load_file(path)
    return found


def _has_safetensors(place: str) -> bool:
    return any(own_file_of(place, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, by its loader that makes nothing else; together no larger than the file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise TreeringError(
            f"{path} is damaged, of an old format, or holds more than tensors: {printable(str(error))}"
        ) from None
    sound = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in found.items()
    )
    if not sound or sum(tensor.nbytes for tensor in found.values()) > path.stat().st_size:
        raise TreeringError(f"{path} holds something else than tensors, each with numbers of its own.")
    return dict(found)
