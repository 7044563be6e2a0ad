from __future__ import annotations

import math

import numpy as np
import pytest

from treering.evaluation import DocumentLosses
from treering.evaluation.continual import average, backward_transfer, forgetting, resampled_averages

ORDER = ("a", "b", "c")
MATRIX = [
    {"a": 4.0, "b": 4.0, "c": 4.0},
    {"a": 2.0, "b": 4.0, "c": 4.0},
    {"a": 1.6, "b": 2.0, "c": 3.0},
    {"a": 2.4, "b": 1.0, "c": 2.0},
]


def test_measures_by_hand():
    assert average(MATRIX) == pytest.approx((2.4 + 1.0 + 2.0) / 3)
    # a: from 2.0 when it was learned to 2.4, a fifth lost; b: from 2.0 to 1.0, half gained.
    assert backward_transfer(ORDER, MATRIX) == pytest.approx((-0.2 + 0.5) / 2)
    # a: its best was 1.6; b: its best is its last.
    assert forgetting(ORDER, MATRIX) == pytest.approx((2.4 / 1.6 - 1 + 0) / 2)


def test_what_never_changes_after_it_was_learned_is_not_forgotten():
    rows = [{"a": 3.0, "b": 3.0}, {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 1.0}]
    assert backward_transfer(("a", "b"), rows) == forgetting(("a", "b"), rows) == 0


def test_resampled_averages_are_paired_and_centred():
    rng = np.random.default_rng(0)
    runs = [{task: DocumentLosses(rng.uniform(50, 150, 40), np.full(40, 100)) for task in ORDER} for _ in range(2)]
    drawn = resampled_averages(runs)
    point = np.mean([[losses.nats.sum() / losses.bytes.sum() for losses in run.values()] for run in runs]) / math.log(2)
    assert drawn.mean() == pytest.approx(point, rel=0.01)
    doubled = [{task: DocumentLosses(2 * losses.nats, losses.bytes) for task, losses in run.items()} for run in runs]
    np.testing.assert_allclose(resampled_averages(doubled), 2 * drawn)  # the same documents are drawn
