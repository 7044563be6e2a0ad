from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from treering.evaluation import DocumentLosses
from treering.evaluation.bits import Change
from treering.reproduction import Claim, Contrast, ReproductionRecipe, claims, rows, verdict
from treering.reproduction.claims import (
    BEST,
    CONTINUATION,
    NO_WORSE,
    RECALL,
    RULES,
    Measured,
    expert,
    guesses,
    joined,
    judge,
    stage,
)
from treering.reproduction.rows import STACKED, STACKED_CODE

CONTRAST = Contrast("a", "b")
BETTER, NOT_WORSE = Claim("part", "a beats b", "x", (CONTRAST,)), Claim("part", "a is as b", "x", (CONTRAST,), NO_WORSE)


def measured(*intervals: tuple[float, float], at_chance: bool = False) -> Measured:
    """A contrast whose seeds have these intervals."""
    changes = tuple(Change((low + high) / 2, low, high) for low, high in intervals)
    return Measured(CONTRAST, (1.0,) * len(changes), (1.0,) * len(changes), changes, at_chance)


@pytest.mark.parametrize(
    ("claim", "found", "expected"),
    [
        (BETTER, [measured((-0.05, -0.02), (-0.03, -0.001))], "holds"),
        (BETTER, [measured((-0.05, -0.02), (-0.03, 0.001))], "not told apart"),  # one seed's interval holds 0
        (BETTER, [measured((-0.05, 0.0))], "not told apart"),
        (BETTER, [measured((0.01, 0.02), (0.03, 0.05))], "does not hold"),
        (BETTER, [measured((0.01, 0.02), (-0.03, -0.02))], "not told apart"),  # seeds disagree
        (NOT_WORSE, [measured((0.001, 0.005), (0.002, 0.009))], "holds"),  # worse, by less than the margin
        (NOT_WORSE, [measured((0.005, 0.02))], "not told apart"),
        (NOT_WORSE, [measured((0.02, 0.05), (0.011, 0.03))], "does not hold"),
        (BETTER, [measured((-0.05, -0.02)), measured((-0.05, -0.02))], "holds"),
        (BETTER, [measured((-0.05, -0.02)), measured((-0.05, 0.02))], "not told apart"),
        (BETTER, [measured((-0.05, -0.02)), measured((0.01, 0.02))], "does not hold"),  # all contrasts are claimed
        (BETTER, [measured((-0.05, -0.02), at_chance=True)], "cannot be judged"),
        (Claim("part", "too large", "x", beyond="why"), [], "cannot be judged"),
        (Claim("part", "so", "x", fact="true"), [], "holds"),
        (Claim("part", "not so", "x", fact="false"), [], "does not hold"),
    ],
)
def test_the_rule_of_a_verdict(claim, found, expected):
    assert verdict(claim, found, {"true": True, "false": False}) == expected


def test_no_interval_makes_a_claim_hold_and_fail():
    """Over a grid of two seeds: what holds for "fewer" and for "more" excludes each other."""
    bounds = [-0.02, -0.005, 0.0, 0.005, 0.02]
    pairs = [(low, high) for low, high in itertools.product(bounds, bounds) if low < high]
    for one, other in itertools.product(pairs, pairs):
        turned = measured(*((-high, -low) for low, high in (one, other)))
        found = {verdict(BETTER, [measured(one, other)], {}), verdict(BETTER, [turned], {})}
        assert found in ({"holds", "does not hold"}, {"not told apart"})


def test_a_contrast_is_a_paired_comparison_of_every_seed():
    sizes = np.array([100.0, 50.0, 200.0, 80.0])
    one, other = (DocumentLosses(sizes * rate, sizes) for rate in (0.9, 1.0))
    found = judge(BETTER, [{"a": {"all": one}, "b": {"all": other}}] * 2, {})
    (both,) = found.measured
    assert both.model == pytest.approx([0.9 / math.log(2)] * 2)
    assert [change.change for change in both.changes] == pytest.approx([-0.1, -0.1])
    assert all(change.low == pytest.approx(change.high) for change in both.changes)  # nothing varies but the document
    assert found.verdict == "holds"


@pytest.mark.parametrize(("right", "guessing"), [(25, True), (33, True), (45, False), (10, True)])
def test_guessing_is_one_right_in_four(right, guessing):
    wrong = np.ones(100)
    wrong[:right] = 0
    assert guesses(DocumentLosses(wrong, np.ones(100))) == guessing


def test_what_guesses_cannot_be_judged_however_large_the_change():
    wrong = {name: np.r_[np.zeros(zeros), np.ones(100 - zeros)] for name, zeros in (("a", 28), ("b", 0))}
    losses = {name: {RECALL: DocumentLosses(own, np.ones(100))} for name, own in wrong.items()}
    found = judge(Claim("part", "recalls", "x", (Contrast("a", "b", RECALL),)), [losses], {})
    assert found.verdict == "cannot be judged" and found.measured[0].changes[0].high < 0
    assert found.measured[0].model == pytest.approx((0.72,))


def test_every_contrast_is_between_models_that_there_are():
    texts = {name: f"embedded:{name}" for name in ("ru", "zh", "en")}
    recipe = ReproductionRecipe.model_validate(
        {
            "output": "o",
            "specialists": {name: texts[name] for name in ("ru", "zh")},
            "shared": {"en": texts["en"]},
            "backbone": {"preset": "tiny"},
            "training": {"tokens": 1_000_000},
        }
    )
    known = {
        *(row.name for row in rows(recipe)),
        *(stage(depth, way) for depth in (2, 4, 6) for way in (STACKED, STACKED_CODE)),
        *(expert(name) for name in texts),
        *(joined(rule, members) for rule in RULES for members in (2, 3)),
        BEST,
    }
    made = claims(recipe, 1)
    assert len({claim.words for claim in made}) == len(made)
    for claim in made:
        assert sum(map(bool, (claim.contrasts, claim.fact, claim.beyond))) == 1, claim.words
        for contrast in claim.contrasts:
            assert {contrast.model, contrast.reference} <= known, contrast
            assert contrast.text in (*texts, "all", RECALL, CONTINUATION), contrast
    assert {"v1", "v2", "v3"} <= {word for claim in made for word in claim.source.split()}
