"""Whether a run keeps the states below what trains on disk: chosen once, when it begins, and told."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel

from treering import corpus as corpora
from treering.errors import TreeringError
from treering.growth.cost import StageCost, cache_flops, shape_of
from treering.growth.prefix import BYTES, Precision, Prefix, PrefixCache
from treering.training.processes import decided
from treering.training.record import read_record, write_record


def prefix_cache(
    model: PreTrainedModel,
    corpus: corpora.Corpus,
    validation: Dataset,
    costs: Sequence[StageCost],
    asked: Prefix,
    directory: Path,
    record: Path,
    console: Console,
) -> PrefixCache | None:
    """The cache of a run's frozen prefixes in ``directory``; None if they are recomputed in every step.

    Args:
        costs: of all stages.
        record: the file that holds what was chosen when the run began.

    Raises:
        TreeringError: the record is damaged.
    """
    both: list[Any] = [corpus.train, validation]
    blocks: ConcatDataset[Any] = ConcatDataset(both)
    held = len(blocks) * corpus.manifest.block_size
    choice = choose_precision(
        asked,
        saved=sum(cost.prefix_flops for cost in costs),
        spent=cache_flops(costs, held, shape_of(model.config, corpus.manifest.block_size)),
        numbers=held * model.config.hidden_size,
        directory=directory,
    )
    precision, why = _first_choice(record, choice, console)
    if any(cost.step.below for cost in costs):
        console.print(f"  the frozen prefix is {why}", highlight=False)
    return PrefixCache(directory, blocks, _identity(corpus, validation), precision) if precision else None


def choose_precision(
    asked: Prefix, saved: float, spent: float, numbers: int, directory: Path
) -> tuple[Precision | None, str]:
    """Whether and how to cache, and why, in words.

    Args:
        saved: FLOPs of recomputing the prefix in every step of all stages that have one.
        spent: FLOPs of making the cache and rolling it forward instead.
        numbers: that the cache holds.
        directory: where it would lie.
    """
    if asked == "recompute":
        return None, "recomputed in every step, as asked"
    if asked != "auto":
        return asked, f"cached in {asked}, as asked"
    if saved <= spent:
        return None, f"recomputed in every step: that takes {saved:.2g} FLOPs, making a cache of it {spent:.2g}"
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    # Two files at most: the one that a stage reads, and the one that it was rolled forward from.
    needed, free = 2 * BYTES["bfloat16"] * numbers, shutil.disk_usage(existing).free
    if needed > 0.8 * free:
        return (
            None,
            f"recomputed in every step: a cache needs {needed >> 20:,} MiB of disk, and {free >> 20:,} are free",
        )
    return "bfloat16", (
        f"cached in bfloat16 (up to {needed >> 20:,} MiB of disk), which takes {spent / saved:.0%} of the "
        f"{saved:.2g} FLOPs of recomputing it"
    )


def _first_choice(path: Path, choice: tuple[Precision | None, str], console: Console) -> tuple[Precision | None, str]:
    """What was chosen when the run began, whatever the disk has free by now.

    Raises:
        TreeringError: it was written, and is damaged, as is its copy.
    """

    def decide() -> tuple[Precision | None, str]:
        known = read_record(path, console)
        if known is None:
            if path.exists():
                raise TreeringError(
                    f"{path} and its copy are damaged: how the frozen prefix was had is not known. "
                    f"Delete {path.parent} to begin anew, or choose another output."
                )
            write_record(path, choice)
            known = choice
        precision, why = known
        return precision, why

    return decided(decide)


def _identity(corpus: corpora.Corpus, validation: Dataset) -> str:
    """A hash of all tokens that the prefix cache is made from."""
    held_out = np.asarray(validation["input_ids"], dtype="<i4").tobytes()
    return hashlib.sha256(corpus.manifest.train.sha256.encode() + held_out).hexdigest()
