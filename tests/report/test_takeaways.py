from __future__ import annotations

import pytest

from treering.report.takeaways import (
    Found,
    listed,
    of_abilities,
    of_arrivals,
    of_bits,
    of_bits_alone,
    of_changes,
    of_comparison,
    of_composition,
    of_gains,
    of_growth,
    of_growth_study,
    of_joining,
    of_kinds,
    of_neighbours,
    of_paper,
    of_speaking_together,
    of_training,
    of_verdicts,
)

GAIN, LOSS, NONE = Found(-0.02, -0.03, -0.01), Found(0.05, 0.04, 0.06), Found(0.01, -0.01, 0.03)
ALONE = Found(-0.5, -0.5, -0.5, documents=1)


@pytest.mark.parametrize(("found", "sign"), [(GAIN, -1), (LOSS, 1), (NONE, 0), (ALONE, 0)])
def test_a_change_counts_only_where_its_interval_holds_no_zero(found, sign):
    assert found.sign == sign
    assert (found.tint > 0, found.tint < 0) == (sign < 0, sign > 0)


def test_a_change_that_is_small_is_not_told_as_none():
    assert (Found(0.0004, 0.0001, 0.0006).share, GAIN.share) == ("0.04%", "2.0%")
    assert (GAIN.interval, ALONE.interval) == ("-3.0% … -1.0%", "")


def test_names_are_listed_as_people_do():
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([["a", "b"], ["c"]], "a and b are of one kind; c is of a kind of its own"),
        ([["a", "b"], ["c", "d", "e"]], "a and b are of one kind; c, d and e are of one kind"),
        ([["a"], ["b"]], "a and b are each of a kind of its own"),
    ],
)
def test_kinds_are_told_by_name(kinds, told):
    assert of_kinds(kinds) == f"Found, not told: {told}."
    doubted = of_kinds(kinds, [("a", "b"), ("a", "c")])
    assert doubted == f"Found, not told: {told}; more documents could say the opposite of a beside b and a beside c."


def test_speaking_together_gains_only_where_several_have_a_say():
    assert of_speaking_together("new", "old", {"x": GAIN, "y": NONE}, ["z"]) == (
        "Where several experts have a say, new needs 2.0% fewer bits per byte than old on x and as many bits per byte "
        "as old, as far as can be told, on y; on z one alone has a say, so that nothing is to be gained by new."
    )
    assert of_speaking_together("new", "old", {}, ["x", "z"]) == (
        "On x and z one alone has a say, so that nothing is to be gained by new."
    )


def test_joining_tells_the_largest_loss():
    told = of_joining("mean", {("a", "a"): LOSS, ("b", "x"): Found(0.2, 0.1, 0.3)}, {})
    assert told == (
        "Joined by mean, joining costs an expert at most 20.0% on its own text (b on x, 95% interval +10.0% … +30.0%)."
    )
    assert "costs an expert 5.0% on" in of_joining("mean", {("a", "a"): LOSS}, {})


def test_joining_tells_a_gain_only_if_every_expert_gains():
    assert "every expert gains on its own text, by 1.0% at least" in of_joining(
        "r", {("a", "a"): GAIN, ("b", "b"): Found(-0.01, -0.02, -0.001)}, {}
    )
    assert "no expert loses anything" in of_joining("r", {("a", "a"): GAIN, ("b", "b"): NONE}, {})
    assert of_joining("r", {}, {}) == "Joined by r, the experts were measured on no text."


def test_joining_tells_of_texts_that_are_nobodys_own():
    told = of_joining("r", {("a", "a"): NONE}, {"x": GAIN, "y": LOSS, "z": NONE})
    assert told.endswith(
        "; together they need 2.0% fewer bits per byte than the better expert on x, 5.0% more bits per byte than the "
        "better expert on y and as many bits per byte as the better expert, as far as can be told, on z."
    )


def test_changes_name_texts_where_nothing_can_be_told_together():
    assert of_changes("a", "b", {"x": NONE, "y": ALONE}) == (
        "a needs as many bits per byte as b, as far as can be told, on x and y."
    )


@pytest.mark.parametrize(
    ("validation", "end"),
    [
        ([(5, 2.0)], "after 1,000 tokens in 10 s."),
        ([(5, 2.0), (10, 1.5)], "it was best at its end, so more might serve."),
        (
            [(5, 1.5), (10, 1.7)],
            "1.500 bits per byte on text that it does not train on at step 5, and then no better: it "
            "ended, at step 10, with 1.700.",
        ),
    ],
)
def test_training_tells_whether_it_went_on_getting_better(validation, end):
    assert of_training("fi", validation, 1000, 10.0).endswith(end)


@pytest.mark.parametrize(
    ("intervals", "end"),
    [
        ({}, "without held-out documents there is no interval."),
        ({"a": ((1.8, 2.2), (1.7, 2.1))}, "overlap on every text."),
        ({"a": ((1.8, 2.2), (1.0, 1.5)), "b": ((1, 2), (1, 2))}, "on a the intervals of the first and the last stage "
         "lie apart."),
        ({"a": ((1.0, 1.5), (1.8, 2.2)), "b": ((1.8, 2.2), (1.0, 1.5))}, "on a the last stage is worse than the "
         "first, interval apart from interval."),
    ],
)  # fmt: skip
def test_growth_tells_whether_intervals_lie_apart(intervals, end):
    told = of_growth([1, 3], [2.0, 1.8], intervals)
    assert told.startswith("In 2 stages, from 1 block to 3, validation fell from 2.000 to 1.800 bits per byte; ")
    assert told.endswith(end)


def test_growth_that_got_worse_or_had_one_stage():
    assert "validation rose from 1.800 to 2.000" in of_growth([2, 2], [1.8, 2.0], {})
    assert of_growth([2], [1.8], {}).startswith("In 1 stage, at 2 blocks, the model reached 1.800")


WHOLE, SHALLOW = (1.5, 1.49, 1.51), (1.6, 1.59, 1.61)


@pytest.mark.parametrize(
    ("rows", "seeds", "told"),
    [
        ({"monolithic, glyph": WHOLE, "shallow, glyph": SHALLOW, "grown, glyph": (1.55, 1.5, 1.6)}, 3, ": 50% of what"),
        (
            {"monolithic, glyph": WHOLE, "shallow, glyph": SHALLOW, "grown, glyph": (1.65, 1.6, 1.7)},
            3,
            "gains nothing on",
        ),
        (
            {"monolithic, glyph": WHOLE, "shallow, glyph": (1.51, 1.5, 1.52), "grown, glyph": WHOLE},
            3,
            "full depth itself",
        ),
        ({"monolithic, glyph": WHOLE, "shallow, glyph": SHALLOW, "grown, glyph": WHOLE}, 1, "with one seed"),
        ({"monolithic, glyph": WHOLE, "grown, glyph": (1.4, 1.39, 1.41)}, 3, "growth is the better"),
        ({"monolithic, glyph": WHOLE, "grown, glyph": SHALLOW}, 3, "growth is the worse"),
        ({"monolithic, glyph": WHOLE, "grown, glyph": (1.5, 1.4, 1.6)}, 3, "not to be told apart"),
        ({"grown, glyph": WHOLE}, 3, "no pair"),
    ],
)
def test_a_growth_study_says_what_growth_has_of_depth(rows, seeds, told):
    assert told in of_growth_study(rows, seeds)


def test_a_comparison_names_who_beats_all_others():
    models = ["a", "b", "c"]
    never = dict.fromkeys(models, 0)
    assert of_comparison(models, never, never, 2) == (
        "None of a, b and c beats all others on any of 2 measures, as far as can be told."
    )
    assert of_comparison(models, {**never, "b": 1}, never, 1) == "b beats a and c on all of 1 measure."
    assert of_comparison(models, {**never, "b": 1}, {**never, "b": 1}, 3) == (
        "b beats a and c on 1 of 3 measures, and is beaten on 1."
    )


def test_bits_abilities_and_studies():
    assert of_bits({"x": ("a", True), "y": ("b", False)}) == (
        "Fewest bits per byte: a on x and b on y; on 1 of 2 texts its 95% interval lies below all others."
    )
    assert of_bits({"x": ("a", False)}).endswith("on no text its 95% interval lies below all others.")
    assert of_bits({"x": ("a", True), "y": ("a", True)}, ["y"]).endswith(
        "on every text its 95% interval lies below all others; to guess among all tokens evenly takes no more on y."
    )
    assert of_bits_alone("a", {"x": 1.5, "y": 2}) == "a needs 1.500 bits per byte on x and 2.000 bits per byte on y."
    assert of_bits_alone("a", {"x": 1.5}, ["x"]).endswith("; to guess among all tokens evenly takes no more on x.")
    assert of_abilities(["a"], [("a", 0.3, 0.25), ("a", 0.2, 0.25)]) == (
        "Of 2 kinds of choices that 1 model made, 1 has the whole 95% interval above chance."
    )
    assert "none has the whole 95% interval above chance" in of_abilities(["a"], [("a", 0.2, 0.25)])
    assert of_abilities(["a"], []) == "1 model, measured by bits per byte alone."
    assert of_paper(["a", "b"], [(26.0, 25.0), (24.0, 25.0), (51.0, 50.0)], [0.1, 0.42]) == (
        "Of 3 results of 2 models on exams that can be guessed, 2 are above chance by more than the runs' margin; up "
        "to 42% of what was written was no answer at all."
    )
    assert "none are above chance" in of_paper(["a"], [(24.0, 25.0)], [0.0])
    assert of_paper(["a"], [], [0.5]) == (
        "1 model, by the paper's protocol: up to 50% of what was written was no answer at all."
    )
    assert of_paper(["a"], [], []) == "1 model, by the paper's protocol: on no exam that could be guessed."
    assert of_arrivals("branches", {"x": LOSS, "y": GAIN, "z": NONE}, 0.012) == (
        "After all tasks, branches has forgotten 1.2%, and is better than 1, worse than 1 and not to be told from 1 of "
        "3 other ways."
    )
    assert "nothing to compare" in of_arrivals("branches", {}, 0.0)
    assert "beat the best of them in 1 of 3 cases, lose to it in 1" in of_gains("r", [-1, 0, 1])
    assert "in any of 2 cases" in of_gains("r", [0, 0])
    assert of_composition(["a", "b"], "mean", False).endswith("joined by mean; nothing was trained to join them.")
    assert "was fitted" in of_composition(["a", "b"], "gate", True)


def test_verdicts_are_counted():
    assert of_verdicts(["holds", "does not hold", "holds", "cannot be judged"]) == (
        "Of 4 claims and controls: 2 held here, 1 did not and 1 cannot be judged at this size."
    )
    assert of_verdicts(["not told apart"]) == "Of 1 claims and controls: 1 could not be told apart from nothing."


def test_script_is_seen_only_beyond_what_chance_gives():
    assert of_neighbours(0.9, 0.4, 1000).endswith("script can be seen in the rows.")
    assert of_neighbours(0.41, 0.4, 1000).endswith("no script can be seen in the rows.")
