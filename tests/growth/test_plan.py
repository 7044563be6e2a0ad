from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from treering.errors import TreeringError
from treering.growth import PLANS, Lora, Plan, Stage, by_turns, copied, looped, monolithic, revolving, sliding, stacked
from treering.growth.plan import Turns, blocks_text, steps, trained_text
from treering.growth.recipe import Branch, Way, as_plan
from treering.training import Training


def plan(*stages, **fields):
    return Plan(stages=tuple(stages), **fields)


@pytest.mark.parametrize(
    ("text", "blocks"), [("3", (3,)), ("1-3", (1, 2, 3)), ("1-2, 5", (1, 2, 5)), (4, (4,)), ([2, 1], (2, 1)), ("", ())]
)
def test_blocks_are_read_as_people_write_them(text, blocks):
    assert Stage(new=text, tokens=1).new == blocks


@pytest.mark.parametrize("text", ["a", "1-", "-3", "0", "1-b", True])
def test_other_blocks_are_refused(text):
    with pytest.raises(ValidationError):
        Stage(new=text, tokens=1)


@given(st.sets(st.integers(1, 60), min_size=1))
def test_blocks_written_are_read_back(blocks):
    assert Stage(new=blocks_text(blocks), tokens=1).new == tuple(sorted(blocks))


def test_a_plan_survives_being_stored():
    made = revolving(6, 2, rounds=2).model_copy(update={"budget": 5})
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_the_places_of_stages():
    found = steps(
        plan(
            Stage(new="1-2", tokens=1),
            Stage(new="3-4", tokens=1),
            Stage(train="1", tokens=1),
            Stage(new="1", insert=True, train="1,4", tokens=1),
            Stage(lora=Lora(), tokens=1),
            Stage(new="6", lora=Lora(), tokens=1),
        )
    )
    assert [(step.depth, step.below) for step in found] == [(2, 0), (4, 2), (4, 0), (5, 0), (5, 0), (6, 0)]
    assert steps(plan(Stage(new="5", tokens=1)), depth=4)[0].below == 4
    assert steps(plan(Stage(new="5", train="4-5", tokens=1)), depth=4)[0].below == 3


@pytest.mark.parametrize(
    ("stage", "depth", "message"),
    [
        (Stage(new="4", tokens=1), 2, "skips blocks: the next would be 3"),
        (Stage(new="2-3", tokens=1), 2, "has some of them already. The next would be 3-4"),
        (Stage(new="3,3", tokens=1), 2, "names a block twice"),
        (Stage(train="1,1", tokens=1), 2, "names a block twice"),
        (Stage(train="3", tokens=1), 2, "trains block 3, and the stack has 2"),
        (Stage(tokens=1), 2, "changes nothing"),
        (Stage(tokens=1), 0, "no block to train"),
        (Stage(train="1-2", lora=Lora(), tokens=1), 2, "no frozen one is left"),
        (Stage(train="1-2", turns=Turns(width=2, head=True), tokens=1), 2, "all of them train at once"),
        (Stage(new="1-4", tied=2, turns=Turns(), tokens=1), 0, "both tied and turns"),
        (Stage(new="1-2", tied=2, tokens=1), 0, "ties its blocks as 2, but trains no more than 2"),
        (Stage(new="3", train="1-3", tied=1, tokens=1), 2, "ties block 2, which is old, to another"),
    ],
)
def test_what_does_not_fit_is_refused_by_stage(stage, depth, message):
    with pytest.raises(TreeringError, match=f"Stage 1 .*{message}"):
        steps(plan(stage), depth)


def test_all_faults_are_told_at_once():
    with pytest.raises(TreeringError) as caught:
        steps(plan(Stage(new="2", tokens=1), Stage(train="9", tokens=1)))
    assert str(caught.value).count("Stage") == 2


def test_a_stage_has_one_length():
    for fields in ({}, {"tokens": 5, "share": 0.5}):
        with pytest.raises(ValidationError, match="either tokens or share"):
            Stage(new="1", **fields)


def test_a_stage_trains_as_the_run_does_unless_it_says_otherwise():
    run = Training(epochs=3, learning_rate=2e-3, warmup=0.25)
    assert Stage(new="1", tokens=9).training(run, 7) == run.model_copy(update={"tokens": 7, "epochs": None})
    own = Stage(new="1", share=0.1, warmup=0.0, rate=(0.5, 0.125)).training(run, 7)
    assert (own.learning_rate, own.final_rate, own.schedule, own.warmup) == (1e-3, 0.25, "linear", 0.0)


def test_windows_take_turns_from_the_top():
    turns = Turns(width=2)
    assert Stage(train="1-5", turns=turns, tokens=1).windows() == [(4, 5), (2, 3), (1,)]
    assert Stage(train="1-5", tokens=1).windows() == [(1, 2, 3, 4, 5)]
    assert trained_text(Stage(train="1-5", turns=turns, tokens=1)) == "1-5 by turns of 2"
    assert trained_text(Stage(train="5", lora=Lora(rank=3), tokens=1)) == "5 + rank 3"


def test_the_head_may_have_a_turn_with_the_lowest_window():
    stage = Stage(train="1-6", turns=Turns(width=4, head=True), tokens=1)
    assert {window: stage.head_trains(window) for window in stage.windows()} == {(3, 4, 5, 6): False, (1, 2): True}
    always = Stage(train="1-6", turns=Turns(width=4), tokens=1)
    assert all(map(always.head_trains, always.windows()))
    assert trained_text(stage) == "1-6 by turns of 4 and head"


def test_tied_blocks_follow_the_first_ones_over_and_over():
    stage = Stage(new="3-7", train="1-7", tied=3, tokens=1)
    assert stage.leaders() == {1: 1, 2: 2, 3: 3, 4: 1, 5: 2, 6: 3, 7: 1}
    assert steps(plan(Stage(new="1-2", tokens=1), Stage(new="3-5", tied=1, tokens=1)))[1].below == 2
    assert Stage(train="2-3", tokens=1).leaders() == {2: 2, 3: 3}
    assert trained_text(stage) == "1-7 as 3"


WAYS = {
    "stacked": lambda depth, width: stacked(depth, width),
    "sliding": lambda depth, width: sliding(depth, width, max(1, width - 1)),
    "revolving": lambda depth, width: revolving(depth, width, rounds=2),
    "turns": lambda depth, width: by_turns(depth, width, base=0.25),
    "turns at once": lambda depth, width: by_turns(depth, width),
    "looped": lambda depth, width: looped(depth, width, tied=min(width, depth - 1)),
    "copied": lambda depth, width: copied(depth, width, low=min(width, depth - 1)),
    "monolithic": lambda depth, width: monolithic(depth),
}


@pytest.mark.parametrize("way", WAYS)
@given(depth=st.integers(2, 20), width=st.integers(1, 6))
def test_ready_ways_reach_their_depth_on_all_the_tokens_with_few_blocks_at_once(way, depth, width):
    width = min(width, depth)
    made = WAYS[way](depth, width)
    placed = steps(made)
    assert placed[-1].depth == depth
    assert sum(stage.share for stage in made.stages) == pytest.approx(1)
    assert {block for stage in made.stages for block in stage.trained} >= set(range(1, depth + 1))
    apart = [len({stage.leaders()[b] for b in window}) for stage in made.stages for window in stage.windows()]
    assert max(apart) == (depth if way == "monolithic" else width)


def test_the_rate_of_a_revolving_plan_falls_once_to_its_end():
    rates = [stage.rate for stage in revolving(6, 2, base=0.4, rounds=3, decay=0.3, final=0.1).stages]
    assert rates[0] == (1.0, 1.0)
    assert all(later[0] == earlier[1] for earlier, later in itertools.pairwise(rates))
    assert rates[-1][1] == 0.1


def test_a_looped_plan_goes_on_apart_with_what_the_loop_learned():
    loop, apart = looped(6, 4, head=True).stages
    assert (loop.new, loop.tied, loop.share, loop.rate) == ((1, 2, 3, 4, 5, 6), 2, 0.3, (1.0, 1.0))
    assert (apart.new, apart.trained, apart.keep_moments, apart.rate) == ((), loop.new, True, (1.0, 0.1))
    assert apart.windows() == [(3, 4, 5, 6), (1, 2)] and not apart.head_trains((3, 4, 5, 6))
    assert looped(6, 4, head=True) == PLANS["looped-6"].plan()


def test_a_copied_plan_jumps_once_to_copies_of_its_lowest_blocks():
    low, whole = copied(12, 12, base=0.6).stages
    assert (low.new, low.share, low.rate) == ((1, 2), 0.6, (1.0, 1.0))
    assert (whole.new, whole.start, whole.share, whole.turns) == (tuple(range(3, 13)), "loop", 0.4, None)
    assert whole.trained == tuple(range(1, 13)) and whole.keep_moments
    assert copied(12, 6, head=True).stages[1].turns == Turns(width=6, head=True)
    with pytest.raises(TreeringError, match="lets the head take turns with its blocks, but all of them train at once"):
        steps(copied(12, 12, head=True))


@pytest.mark.parametrize("way", ["looped", "copied"])
@pytest.mark.parametrize("wrong", [{"low": 6}, {"base": 0}])
def test_blocks_that_come_again_are_fewer_than_the_depth(way, wrong):
    with pytest.raises(ValidationError, match=f"{way} wants low to be less than depth, and a base above 0"):
        Way(way=way, depth=6, **wrong)


def test_the_papers_plans():
    assert [stage.new for stage in PLANS["paper-9"].plan().stages] == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert [stage.new for stage in PLANS["paper-6"].plan().stages] == [(n,) for n in range(1, 7)]
    assert all(stage.start == "random" for stage in PLANS["paper-16"].plan().stages)
    for way in PLANS.values():
        steps(as_plan(way, 4), 4 if way is PLANS["branch"] else 0)


def test_a_branch_stands_on_the_model_whatever_its_depth():
    (two,) = as_plan(PLANS["branch"], 30).stages
    assert (two.new, two.trained, two.start, two.share) == ((31, 32), (31, 32), "zero", 1.0)
    (upper,) = as_plan(Branch.model_validate({"from": 3}), 30).stages
    assert (upper.new, upper.trained) == ((), (28, 29, 30))
    (both,) = as_plan(Branch.model_validate({"from": 1, "blocks": 1}), 4).stages
    assert (both.new, both.trained) == ((5,), (4, 5))
    (step,) = steps(as_plan(Branch.model_validate({"from": 4}), 4), 4)
    assert (step.depth, step.below, step.stage.head) == (4, 0, "frozen")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"from": 5}, "cannot leave the trunk 5 blocks below the top: the model has 4. Give from: 4 at most"),
        ({"blocks": 0}, "no block of its own"),
    ],
)
def test_a_branch_that_does_not_fit(fields, message):
    with pytest.raises(TreeringError, match=message):
        as_plan(Branch.model_validate(fields), 4)


def test_a_stage_may_freeze_the_head_or_leave_it_to_the_plan():
    stages = (Stage(new="3", share=0.5), Stage(new="4", share=0.5, head="trained"))
    assert [step.stage.head for step in steps(Plan(stages=stages, head="frozen"), 2)] == ["frozen", "trained"]
    assert [step.stage.head for step in steps(Plan(stages=stages), 2)] == ["trained", "trained"]
    assert Way(way="monolithic", depth=2, head="frozen").plan().head == "frozen"


def test_a_head_that_was_never_trained_cannot_be_frozen():
    stages = (Stage(new="1", share=0.5, head="frozen"), Stage(new="2", share=0.5))
    with pytest.raises(TreeringError, match=r"Stage 1 freezes the head .* Say head: trained, or give model"):
        steps(Plan(stages=stages))
    steps(Plan(stages=(stages[1], Stage(new="3", share=0.5, head="frozen"))), 1)


def test_a_frozen_head_takes_no_turns():
    stage = Stage(train="1-4", turns=Turns(width=2, head=True), head="frozen", share=1)
    with pytest.raises(TreeringError, match="lets the head take turns with its blocks, but freezes it"):
        steps(Plan(stages=(stage,)), 4)
