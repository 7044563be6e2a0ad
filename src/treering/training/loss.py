"""Next-token loss without the logits: the head and the cross-entropy in one chunked step."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from treering.backbone import head, logits_of

LOGITS_AT_ONCE = 2**23
"""Logits per chunk (positions × vocabulary): 32 MiB in float32, whatever the vocabulary."""

IGNORED = -100
"""The label of positions that do not count."""


class Lesson(NamedTuple):
    """Whose distributions a model learns beside its text, and their share in the loss."""

    teacher: PreTrainedModel
    share: float


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sum over positions of ``-log softmax(finish(hidden @ weight.T + bias))[label]``, in nats.

    The logits of the whole batch, the largest tensor of a small model with a large vocabulary, never exist at once:
    ``torch.nn.functional.linear_cross_entropy`` makes them chunk by chunk, with their gradients; where it cannot, they
    are made again for these.

    Args:
        hidden: final hidden states [position, d_model].
        weight: output head [vocab, d_model].
        labels: the token that follows each position [position]; ``IGNORED`` does not count. Or what probability each
            token has of following it [position, vocab], to learn all of these.
        bias: of the head [vocab].
        finish: what is done to the head's outputs […, vocab]; nothing, if None.
    """
    at_once = max(1, LOGITS_AT_ONCE // len(weight))
    if finish is not None or labels.is_floating_point():

        def part(hidden: Tensor, labels: Tensor) -> Tensor:
            logits = F.linear(hidden, weight, bias)
            logits = (logits if finish is None else finish(logits)).float()
            return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)

        parts = zip(hidden.split(at_once), labels.split(at_once), strict=True)
        return torch.stack([checkpoint(part, *each, use_reentrant=False) for each in parts]).sum()
    return F.linear_cross_entropy(
        hidden,
        weight,
        labels,
        linear_bias=bias,
        reduction="sum",
        ignore_index=IGNORED,
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=at_once, chunking_method=None),
    )


@torch.no_grad()
def taught(input_ids: Tensor, labels: Tensor, lesson: Lesson, vocab_size: int) -> Tensor:
    """What each position is to learn: ``(1 - share) · [v is its label] + share · teacher(v)`` [position, vocab].

    Hinton, Vinyals & Dean 2015, *Distilling the knowledge in a neural network*, equation 1 at temperature 1. The
    teacher's logits exist for as many rows at once as ``LOGITS_AT_ONCE`` holds; what is returned, for all.

    Args:
        input_ids: [batch, position].
        labels: the token that follows each position but the last [batch, position - 1]; where it is ``IGNORED``, there
            is nothing to learn.
    """
    found = []
    rows = max(1, LOGITS_AT_ONCE // input_ids[0].numel() // vocab_size)
    for read, follow in zip(input_ids.split(rows), labels.split(rows), strict=True):
        said = lesson.teacher(input_ids=read, use_cache=False).logits[:, :-1, :vocab_size]
        counts = (follow != IGNORED)[..., None].float()
        targets = said.float().softmax(-1).mul_(lesson.share * counts)
        found.append(targets.scatter_add_(-1, follow.clamp(min=0)[..., None], (1 - lesson.share) * counts))
    return torch.cat(found).flatten(0, 1)


def log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities […, position] of ``tokens`` under ``logits`` […, position, vocab], in float32.

    ``tokens`` may lack leading dimensions of ``logits`` (the experts', say): they are then the same for all.
    """
    index = tokens.expand(logits.shape[:-1])[..., None]
    return logits.float().log_softmax(-1).gather(-1, index)[..., 0]


def _fused_forward(
    self: PreTrainedModel,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    lesson: Lesson | None = None,
    **inputs: Any,
) -> CausalLMOutputWithPast:
    """Stand-in for a causal language model's forward while it trains: the mean loss in nats per token, no logits."""
    hidden = self.base_model(use_cache=False, **inputs).last_hidden_state
    follow, out = labels[:, 1:], head(self)
    targets = (
        taught(inputs["input_ids"], follow, lesson, len(out.weight)) if lesson and self.training else follow.flatten()
    )
    total = next_token_loss(hidden[:, :-1].flatten(0, 1), out.weight, targets, out.bias, logits_of(self))
    count = (follow != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(loss=total / count)


@contextmanager
def fused_loss(model: PreTrainedModel, lesson: Lesson | None = None) -> Iterator[None]:
    """Let ``model(input_ids, labels)`` compute its loss without logits inside this block.

    Only the instance's ``forward`` is replaced, and given back at the end: the class, the weights and what is saved
    stay those of a plain Hugging Face model.

    Args:
        lesson: what it learns in training mode beside the text; what it is evaluated by is the text alone.
    """
    model.forward = types.MethodType(partial(_fused_forward, lesson=lesson), model)
    try:
        yield
    finally:
        del model.forward


def collate(blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Packed blocks to ``input_ids`` and ``labels`` [batch, position]; the first token of a block has no context.

    Of blocks that come with ``hidden`` [position, d_model], what the model's lower part makes of them, the model reads
    that, as ``inputs_embeds``, instead of the IDs.
    """
    input_ids = torch.stack([torch.as_tensor(block["input_ids"], dtype=torch.long) for block in blocks])
    labels = input_ids.clone()
    labels[:, 0] = IGNORED
    if "hidden" in blocks[0]:
        return {"inputs_embeds": torch.stack([block["hidden"] for block in blocks]), "labels": labels}
    return {"input_ids": input_ids, "labels": labels}
