"""Which blocks a run reads, in which order and how many at a time; the number of processes changes nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.training.processes import processes
from treering.training.settings import Training


def reading_order(blocks: int, seed: int, start: int, count: int) -> np.ndarray:
    """Rows of a corpus in the order in which a run reads them, from the ``start``-th on: epochs, each in its own order.

    It follows from these numbers alone, so that runs are compared on the same text in the same order.
    """
    first, last = start // blocks, (start + count - 1) // blocks
    epochs = [np.random.default_rng((seed, epoch)).permutation(blocks) for epoch in range(first, last + 1)]
    return np.concatenate(epochs)[start - first * blocks :][:count]


class Reading(torch.utils.data.Dataset):
    """Packed blocks in the order in which a run reads them.

    Args:
        blocks: map-style, each a mapping with ``input_ids``.
        rows: which of them, one after another.
    """

    def __init__(self, blocks: Any, rows: Sequence[int] | np.ndarray) -> None:
        self.blocks, self.rows = blocks, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.blocks[int(self.rows[index])]["input_ids"]}


@dataclass(frozen=True)
class Text:
    """What a run reads: blocks of token IDs, each a mapping with ``input_ids`` (and ``hidden``, see `collate`).

    Attributes:
        train: from the first to the last, once; ``block_size`` tokens a row, and as many rows as whole steps take.
        validation: as ``train``.
        bytes_per_token: UTF-8 bytes that a validation token stands for.
        tokenizer: to show people a block.
    """

    train: Reading
    validation: Any
    bytes_per_token: float
    block_size: int
    tokenizer: PreTrainedTokenizerFast


def blocks_per_step(settings: Training, block_size: int) -> int:
    """Blocks that one step of the optimiser reads, over all processes."""
    return max(1, round(settings.batch_tokens / block_size))


def batch_shape(settings: Training, block_size: int) -> tuple[int, int]:
    """Blocks of a forward pass in each process, and forward passes of a step.

    Raises:
        TreeringError: the blocks of a step cannot be shared evenly.
    """
    blocks, group = blocks_per_step(settings, block_size), processes().num_processes
    share, rest = divmod(blocks, group)
    if rest:
        raise TreeringError(
            f"A step reads {blocks} blocks ({settings.batch_tokens:,} tokens in blocks of {block_size}), which {group} "
            "processes cannot share evenly. Start as many processes as divide it, or change training.batch_tokens."
        )
    most = max(1, settings.micro_batch_tokens // block_size)
    micro_batch = max(size for size in range(1, min(share, most) + 1) if share % size == 0)
    return micro_batch, share // micro_batch
