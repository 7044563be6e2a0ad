"""Adding blocks to a model of any supported family, and setting some of them aside."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from treering import backbone
from treering.errors import TreeringError
from treering.growth.plan import Start

Kind = TypeVar("Kind")
"""What a configuration says of one block."""


def deepen(model: PreTrainedModel, new: Sequence[int], start: Start = "random", residual_init: bool = True) -> None:
    """Add blocks to ``model``, in place.

    Initial weights come from torch's global random state, through the family's own initialisation: seed it first.

    Args:
        new: where the new blocks stand in the deeper stack, from 1; old blocks keep their order.
        start: ``random``; ``zero``: random, but what the block adds to the residual stream is zero, so that the deeper
            model computes exactly what it did; ``copy``, ``loop``: of old blocks (see `sources`), or random if there
            are none.
        residual_init: divide a random block's output matrices by √(2·depth), depth being the new one (GPT-2).

    Raises:
        TreeringError: the family is not supported.
    """
    old, config = list(backbone.blocks(model)), model.config
    depth, copied = len(old) + len(new), sources(new, len(old), start)
    lists = {name: kinds(values, new, start) for name, values in backbone.per_block(config).items()}
    descending = sorted(new, reverse=True)
    made = fresh_model(config, len(new), {name: [v[block - 1] for block in descending] for name, v in lists.items()})
    fresh, left = list(backbone.blocks(made)), iter(old)
    sample, stack = next(model.parameters()), list[nn.Module]()
    for position in range(1, depth + 1):
        if position not in new:
            stack.append(next(left))
            continue
        block = fresh.pop()
        if position in copied:
            block = copy.deepcopy(old[copied[position] - 1])
        elif residual_init:
            _scale_outputs(block, 1 / math.sqrt(2 * depth))
        if start == "zero":
            backbone.silence(block, backbone.family(config))
        stack.append(block.to(device=sample.device, dtype=sample.dtype).train(model.training))
    _place(stack, config)
    backbone.set_blocks(model, nn.ModuleList(stack))
    config.num_hidden_layers = depth
    for name, values in lists.items():
        setattr(config, name, values)


def sources(new: Sequence[int], old: int, start: Start) -> dict[int, int]:
    """For each new block that begins as a copy of one of the ``old`` blocks, that one, numbered as it was before.

    ``copy`` is of the next old block below (of the one above where there is none); ``loop`` of all old blocks over and
    over, 1 2 on top of 1 2 (G_stack of Du et al. 2024).
    """
    if not old or start not in ("copy", "loop"):
        return {}
    below = {block: block - 1 - number for number, block in enumerate(sorted(new))}
    return {b: max(1, below[b]) if start == "copy" else n % old + 1 for n, b in enumerate(sorted(new))}


def kinds(old: Sequence[Kind], new: Sequence[int], start: Start) -> list[Kind]:
    """How each block of the deeper stack attends (`PER_BLOCK`): a new one as what it copies, or else stands on.

    Args:
        old: kinds of the blocks before; at least one.
    """
    copied, found, left = sources(new, len(old), start), list[Kind](), iter(old)
    for position in range(1, len(old) + len(new) + 1):
        if position not in new:
            found.append(next(left))
        elif position in copied:
            found.append(old[copied[position] - 1])
        else:
            found.append(found[-1] if found else old[0])
    return found


def require_one_kind(leaders: Mapping[int, int], kinds: Sequence[str]) -> None:
    """Check that blocks can share parameters (see `tied`).

    Raises:
        TreeringError: two of them attend in different ways (a sliding window and the whole context, say).
    """
    for block, leader in leaders.items():
        if kinds[block - 1] != kinds[leader - 1]:
            raise TreeringError(
                f"Block {block} ({kinds[block - 1]}) cannot be tied to block {leader} ({kinds[leader - 1]}): "
                "they attend in different ways. Tie blocks at the distance at which their kinds repeat."
            )


def fresh_model(
    config: PreTrainedConfig, count: int, per_block: Mapping[str, Sequence[Any]] | None = None
) -> PreTrainedModel:
    """Blocks as transformers makes and initialises them, in a model of one token.

    Args:
        per_block: what the configuration says of each; of the first block, if not given.
    """
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = count, 1, None
    for name, values in backbone.per_block(config).items():
        setattr(small, name, list(per_block[name]) if per_block else values[:1] * count)
    return AutoModelForCausalLM.from_config(small)


_NOISE = ("attention_dropout", "residual_dropout", "embedding_dropout", "jitter_noise")
"""Attributes by which a module drops out, or sends tokens to experts by chance, without a layer for it."""


def still(model: PreTrainedModel) -> None:
    """Let nothing drop out: a frozen block must make the same of a text every time."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _NOISE:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if fields := backbone.family(model.config).dropout:
        quiet = copy.deepcopy(model.config)
        for field in fields:
            setattr(quiet, field, 0.0)
        _place(backbone.blocks(model), quiet)


@contextmanager
def tied(model: PreTrainedModel, leaders: Mapping[int, int]) -> Iterator[None]:
    """Inside this block of code blocks share the parameters of others; at the end each has a copy of its own.

    A stack that repeats few blocks is a looped, or universal, Transformer (Dehghani et al. 2019). While blocks are
    tied, a cache of keys and values would mix them up: compute without.

    Args:
        leaders: for each block, from 1, the one whose parameters it shares, under that one's name; of one kind (see
            `require_one_kind`).
    """
    stack = backbone.blocks(model)
    followers = {block: leader for block, leader in leaders.items() if block != leader}
    for block, leader in followers.items():
        stack[block - 1] = stack[leader - 1]
    try:
        yield
    finally:
        for block, leader in followers.items():
            stack[block - 1] = copy.deepcopy(stack[leader - 1])
        _place(stack, model.config)


def _place(stack: Iterable[nn.Module], config: PreTrainedConfig) -> None:
    """Tell every part of a block where it stands, which the cache of keys and values goes by, and in which model."""
    for index, block in enumerate(stack):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
            if hasattr(module, "config"):
                module.config = config  # type: ignore[assignment]


def _scale_outputs(block: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for output in backbone.residual_outputs(block):
            output.mul_(factor)


class _Absent(nn.Module):
    """Where a block stood: what comes in goes out, in the way that the family's blocks return it."""

    def __init__(self, family: backbone.Family) -> None:
        super().__init__()
        self.returns_tuple = family.returns_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        return (hidden_states, None) if self.returns_tuple else hidden_states


class _Entrance(_Absent):
    """Where the lowest block stood: out goes what the model was given, whatever its family does to embeddings first."""

    given: Tensor

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the model's forward."""
        self.given = kwargs["inputs_embeds"]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        return super().forward(self.given)


@contextmanager
def only(model: PreTrainedModel, low: int, high: int | None = None) -> Iterator[None]:
    """Inside this block of code the model consists of blocks ``low + 1`` … ``high`` alone, and then head.

    What stands below or above is taken out, with its parameters, but the names of the rest stay. Without ``high`` the
    final norm stays too; with it the base model returns the hidden states after block ``high`` as they are. If ``low``
    is not 0, the embedding is taken out as well, and the model reads hidden states: ``inputs_embeds``.
    """
    stack, norm, family = backbone.blocks(model), backbone.final_norm(model), backbone.family(model.config)
    table = backbone.embedding(model)
    top = len(stack) if high is None else high
    partial = [block if low <= index < top else _Absent(family) for index, block in enumerate(stack)]
    with ExitStack() as undo:
        undo.callback(model.set_input_embeddings, table)
        undo.callback(backbone.set_final_norm, model, norm)
        undo.callback(backbone.set_blocks, model, stack)
        if low:
            partial[0] = entrance = _Entrance(family)
            undo.callback(model.base_model.register_forward_pre_hook(entrance.note, with_kwargs=True).remove)
            model.set_input_embeddings(nn.Identity())
        if high is not None:
            backbone.set_final_norm(model, nn.Identity())
        backbone.set_blocks(model, nn.ModuleList(partial))
        yield
