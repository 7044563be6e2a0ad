from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.assignment import Assignment, assigned, parse_assignment
from treering.corpus import CorpusRecipe
from treering.errors import TreeringError
from treering.growth import GrowthRecipe
from treering.growth.continual import ContinualRecipe
from treering.growth.study import StudyRecipe
from treering.recipe import check_recipe, load_recipe
from treering.training import ExpertRecipe

EXPERT = {"substrate": "s", "data": "d", "output": "o"}
STUDY = {"tokenizer": "t", "data": "d", "output": "o", "plan": "copied-6", "training": {"tokens": 1000}}
CONTINUAL = {"model": "m", "tasks": {"a": "x", "b": "y"}, "output": "o", "training": {"tokens": 1000}}


@pytest.mark.parametrize(
    ("text", "place", "value"),
    [
        ("output=a=b", ("output",), "a=b"),
        ("training.tokens=1_000", ("training", "tokens"), 1000),
        ("training.betas=[0.9, 0.95]", ("training", "betas"), [0.9, 0.95]),
        ("plan.stages.0={new: 1-2, share: 1}", ("plan", "stages", "0"), {"new": "1-2", "share": 1}),
        ("equal_compute=no", ("equal_compute",), False),
        ("training.epochs=", ("training", "epochs"), None),
        ("training.epochs=null", ("training", "epochs"), None),
    ],
)
def test_what_an_assignment_says(text, place, value):
    assert parse_assignment(text) == Assignment(place, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.tokens", "write FIELD=VALUE"),
        ("=3", "write FIELD=VALUE"),
        ("training..tokens=3", "write FIELD=VALUE"),
        ("seeds=[1", "--set seeds:1: not valid YAML"),
        ("data=!!python/name:os.system x", "--set data:1: text, numbers"),
    ],
)
def test_what_is_no_assignment(text, expected):
    with pytest.raises(TreeringError, match="--set") as error:
        parse_assignment(text)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("schema", "values", "assignments", "read", "expected"),
    [
        (ExpertRecipe, EXPERT, ["training.epochs=2"], lambda r: r.training.epochs, 2),
        (ExpertRecipe, EXPERT, ["training.epochs=2", "training.betas.1=0.95"], lambda r: r.training.betas, (0.9, 0.95)),
        (
            ExpertRecipe,
            EXPERT,
            ["training.epochs=2", "training.learning_rate=1e-3"],
            lambda r: r.training.learning_rate,
            1e-3,
        ),
        (ExpertRecipe, EXPERT, ["backbone.layers=3", "output=p"], lambda r: (r.backbone.layers, r.output), (3, "p")),
        (
            ExpertRecipe,
            EXPERT | {"training": {"epochs": 1}},
            ["training.epochs=", "training.tokens=5"],
            lambda r: (r.training.epochs, r.training.tokens),
            (None, 5),
        ),
        (
            GrowthRecipe,
            EXPERT | {"plan": "copied-6"},
            ["plan.depth=8"],
            lambda r: (r.plan.way, r.plan.depth),
            ("copied", 8),
        ),
        (GrowthRecipe, EXPERT | {"plan": "copied-6"}, ["plan=paper-6"], lambda r: r.plan.way, "stacked"),
        (
            GrowthRecipe,
            EXPERT | {"plan": {"stages": [{"new": "1-2", "share": 0.5}]}},
            ["plan.stages.1.new=3", "plan.stages.1.share=0.5", "plan.stages.1.lora.rank=4"],
            lambda r: [(s.new, s.lora and s.lora.rank) for s in r.plan.stages],
            [((1, 2), None), ((3,), 4)],
        ),
        (StudyRecipe, STUDY, ["plan.depth=4", "seeds.0=7"], lambda r: (r.plan.depth, r.seeds), (4, (7, 1, 2))),
        (StudyRecipe, STUDY, ["search.warmup.0=0.2"], lambda r: r.search.warmup, (0.2, 0.1, 0.5)),
        (StudyRecipe, STUDY, ["more.deep={way: stacked, depth: 9}"], lambda r: r.more["deep"].depth, 9),
        (
            ContinualRecipe,
            CONTINUAL,
            ["tasks.c=z", "branch.from=2"],
            lambda r: (list(r.tasks), r.branch.leave),
            (["a", "b", "c"], 2),
        ),
        (
            CorpusRecipe,
            {"tokenizer": "t", "output": "o"},
            ["sources.0.path=a.txt", "sources.1.path=b.txt", "sources.0.licence=MIT", "mix=repeat"],
            lambda r: ([s.name for s in r.sources], r.sources[0].licence, r.mix),
            (["a", "b"], "MIT", "repeat"),
        ),
    ],
)
def test_fields_of_every_recipe_can_be_set(schema, values, assignments, read, expected):
    before = copy.deepcopy(values)
    assert read(check_recipe(values, schema, "here", assignments)) == expected
    assert values == before


def test_a_branch_keeps_what_suits_it_when_its_plan_is_changed():
    recipe = check_recipe(
        {"model": "m", "data": "d", "output": "o", "plan": "branch"}, GrowthRecipe, "here", ["plan.blocks=4"]
    )
    assert (recipe.plan.blocks, recipe.training.epochs, recipe.training.warmup) == (4, 2, 0.1)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        (
            "training.learnin_rate=1",
            "--set: training.learnin_rate: there is no such field; did you mean 'learning_rate'?",
        ),
        ("training.learning_rate=fast", "--set: training.learning_rate: input should be a valid number"),
        ("training.betas.1=2", "--set: training.betas.1: input should be less than 1"),
        ("training.betas.7=0.5", "--set training.betas.7: training.betas is a list of 2, counted from 0"),
        ("training.betas.x=0.5", "neither one of them nor the next"),
        ("data.path=x", "--set data.path: data is 'd', which has no fields; set it as a whole"),
    ],
)
def test_faults_of_assignments_name_the_field(tmp_path, assignment, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text("substrate: s\ndata: d\noutput: o\ntraining: {epochs: 1, betas: [0.9, 0.99]}\n", encoding="utf-8")
    with pytest.raises(TreeringError) as error:
        load_recipe(path, ExpertRecipe, None, [assignment])
    assert expected in str(error.value)


def test_faults_of_the_file_keep_their_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("substrate: s\ndata: d\noutput: o\ntraining: {epochs: many}\n", encoding="utf-8")
    with pytest.raises(TreeringError, match=r"recipe.yaml:4: training.epochs"):
        load_recipe(path, ExpertRecipe, {"data": "e"}, ["training.seed=1"])


TREES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
PLACES = st.lists(st.sampled_from(["a", "b", "0", "1"]), min_size=1, max_size=4).map(tuple)


@given(st.dictionaries(st.sampled_from("abc"), TREES), PLACES, st.integers())
def test_what_is_assigned_is_there_and_nothing_else_changed(values, place, value):
    before = copy.deepcopy(values)
    try:
        made = assigned(values, Assignment(place, value), {})
    except TreeringError:
        return
    finally:
        assert values == before
    at = made
    for part in place:
        at = at[int(part)] if isinstance(at, list) else at[part]
    assert at == value
    assert {k: v for k, v in made.items() if k != place[0]} == {k: v for k, v in before.items() if k != place[0]}
