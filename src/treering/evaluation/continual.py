"""What is kept and what is lost when tasks arrive one after another: the field's measures, on bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from treering.evaluation.bits import DocumentLosses, resampled_ratios

Matrix = Sequence[Mapping[str, float]]
"""Bits per byte of every task after each arrival [arrival][task]; the first row is from before any."""


def average(matrix: Matrix) -> float:
    """Mean over the tasks at the end."""
    return float(np.mean(list(matrix[-1].values())))


def backward_transfer(order: Sequence[str], matrix: Matrix) -> float:
    """What the tasks gained since they were learned by those that came after, as a share of their bits; < 0: lost.

    The mean over all tasks but the last of ``R[own][task] / R[end][task] − 1`` turned so that more is better: Lopez-Paz
    & Ranzato 2017, *Gradient episodic memory*, on bits, of which fewer are better, instead of on accuracy.
    """
    own = {task: row[task] for task, row in zip(order, matrix[1:], strict=True)}
    return float(np.mean([1 - matrix[-1][task] / own[task] for task in order[:-1]]))


def forgetting(order: Sequence[str], matrix: Matrix) -> float:
    """How far the tasks stand at the end above their best since they were learned, as a share of it.

    The mean over all tasks but the last: Chaudhry et al. 2018, *Riemannian walk for incremental learning*, on bits.
    """
    best = {task: min(row[task] for row in matrix[at + 1 :]) for at, task in enumerate(order[:-1])}
    return float(np.mean([matrix[-1][task] / best[task] - 1 for task in order[:-1]]))


def resampled_averages(found: Sequence[Mapping[str, DocumentLosses]], seed: int = 0) -> np.ndarray:
    """Averages over tasks [resample], of runs on the same documents, which are drawn with replacement in each task.

    Args:
        found: of each run (an order, a seed), the losses by task; their mean is taken.
    """
    runs = [
        np.mean(
            [resampled_ratios(losses.nats, losses.bytes, seed + at) for at, losses in enumerate(by_task.values())], 0
        )
        for by_task in found
    ]
    return np.mean(runs, 0) / math.log(2)
