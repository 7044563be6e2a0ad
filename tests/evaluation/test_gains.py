from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from treering.evaluation import Change, DocumentLosses, paired_change
from treering.evaluation.costs import Costs
from treering.evaluation.gains import EVERY, OWN, Against, Gains, Outcome, as_gains_table, compared, lines


def losses(*nats):
    return DocumentLosses(np.array(nats), np.full(len(nats), 10))


def test_a_seed_is_compared_with_its_own_best_member_and_with_the_one_least_is_gained_over():
    joined = [losses(8.0, 8.0, 8.0), losses(9.0, 9.0, 9.0)]
    sure, unsure = losses(10.0, 10.0, 10.0), losses(5.0, 10.0, 16.0)
    found = compared(joined, [[sure, unsure], [unsure, sure]], {"pooled": [sure, sure]})
    assert [change.change for change in found[OWN].changes] == pytest.approx([-0.2, -0.1])  # of what is less in all
    assert list(found[EVERY].changes) == [paired_change(own, unsure) for own in joined]
    assert found["pooled"].change == pytest.approx(-0.15) and found["pooled"].significant
    assert not found[EVERY].significant


def test_seeds_that_disagree_are_not_significant():
    better, worse, unsure = Change(-0.1, -0.2, -0.05), Change(0.1, 0.05, 0.2), Change(-0.1, -0.2, 0.1)
    assert Against((1.0, 1.0), (better, better)).significant and Against((1.0,), (worse,)).significant
    for changes in ((better, worse), (better, unsure)):
        assert not Against((1.0, 1.0), changes).significant


def test_table_and_figure_have_the_means_over_seeds():
    against = {
        name: Against((2.0, 3.0), (Change(-0.1, -0.2, -0.05), Change(-0.3, -0.4, -0.2))) for name in (OWN, EVERY)
    }
    cells, costs = [(1, None), (2, 0.5)], Costs(1_234_567, 4.26, 5.21)
    found = Gains([Outcome("ru", "mean", *cell, cell[1], 9, (1.0, 2.0), against, costs) for cell in cells], [], {})
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(as_gains_table(found))
    shown = [line.split() for line in console.export_text().splitlines()]
    assert shown[1] == ["ru", "mean", "1", "1.500", "2.500", "-20.0%", "1,234,567", "4.3", "5.2"]
    assert shown[2] == ["ru", "mean", "2", "50%", "1.500", "2.500", "-20.0%", "1,234,567", "4.3", "5.2"]
    assert lines(found) == {"ru": {("mean", 1): {None: pytest.approx(0.2)}, ("mean", 2): {0.5: pytest.approx(0.2)}}}
