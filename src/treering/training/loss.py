"""Next-token loss without the logits: the head and the cross-entropy in one chunked step."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sum over positions of ``-log softmax(finish(hidden @ weight.T + bias))[label]``, in nats.

    The logits of the whole batch, the largest tensor of a small model with a large vocabulary, never exist at once:
    ``torch.nn.functional.linear_cross_entropy`` makes them chunk by chunk, with their gradients.

    Args:
        hidden: final hidden states [position, d_model].
        weight: output head [vocab, d_model].
        labels: the token that follows each position [position]; ``IGNORED`` does not count.
        bias: of the head [vocab].
        finish: what is done to the head's outputs […, vocab]; nothing, if None.
    """
    at_once = max(1, LOGITS_AT_ONCE // len(weight))
    if finish is not None:

        def part(hidden: Tensor, labels: Tensor) -> Tensor:
            logits = finish(F.linear(hidden, weight, bias)).float()
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
    **inputs: Any,
) -> CausalLMOutputWithPast:
    """Stand-in for a causal language model's forward while it trains: the mean loss in nats per token, no logits."""
    hidden = self.base_model(use_cache=False, **inputs).last_hidden_state
    targets = labels[:, 1:].flatten()
    out = head(self)
    total = next_token_loss(hidden[:, :-1].flatten(0, 1), out.weight, targets, out.bias, logits_of(self))
    count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(loss=total / count)


@contextmanager
def fused_loss(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model(input_ids, labels)`` compute its loss without logits inside this block.

    Only the instance's ``forward`` is replaced, and given back at the end: the class, the weights and what is saved
    stay those of a plain Hugging Face model.
    """
    model.forward = types.MethodType(_fused_forward, model)
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
