from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.corpus import CorpusRecipe, Source
from treering.errors import TreeringError
from treering.growth import GrowthRecipe
from treering.growth.plan import steps
from treering.growth.recipe import as_plan
from treering.growth.study import StudyRecipe
from treering.recipe import check_recipe, load_recipe
from treering.training import ExpertRecipe

GOOD = """\
substrate: runs/substrate
data: runs/data
output: runs/ru
backbone:
  preset: tiny
training:
  tokens: 1_000_000
  learning_rate: 1.0e-3
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_fields_and_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), ExpertRecipe)
    assert (recipe.training.tokens, recipe.training.learning_rate) == (1_000_000, 1e-3)
    assert recipe.backbone.preset == "tiny"
    assert recipe.training.batch_tokens == 1024


def test_overrides_replace_top_level_fields(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), ExpertRecipe, {"output": "elsewhere", "data": None})
    assert (recipe.output, recipe.data) == ("elsewhere", "runs/data")


@pytest.mark.parametrize(
    ("line", "wrong", "expected"),
    [
        (
            "  learning_rate: 1.0e-3",
            "  learnin_rate: 1.0e-3",
            ":8: training.learnin_rate: there is no such field; did",
        ),
        ("  tokens: 1_000_000", "  tokens: many", ":7: training.tokens: input should be a valid integer"),
        (
            "  tokens: 1_000_000",
            "  tokens: -5",
            ":7: training.tokens: input should be greater than 0 (got -5)",
        ),
        ("  tokens: 1_000_000", "  {tokens: 1, epochs: 1}: 3", ""),
        ("data: runs/data", "", ": data: this field is required"),
        ("  preset: tiny", "  preset: [tiny]", ":5: backbone.preset: input should be a valid string"),
    ],
)
def test_faults_name_file_line_and_field(tmp_path, line, wrong, expected):
    path = write(tmp_path, GOOD.replace(line, wrong))
    with pytest.raises(TreeringError) as error:
        load_recipe(path, ExpertRecipe)
    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_every_fault_is_listed(tmp_path):
    path = write(tmp_path, GOOD.replace("tokens: 1_000_000", "tokens: x").replace("preset: tiny", "presets: tiny"))
    with pytest.raises(TreeringError) as error:
        load_recipe(path, ExpertRecipe)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "\x00"])
def test_what_is_no_recipe_is_said_so(tmp_path, text):
    with pytest.raises(TreeringError, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text), ExpertRecipe)


def test_missing_file(tmp_path):
    with pytest.raises(TreeringError, match="There is no recipe"):
        load_recipe(tmp_path / "none.yaml", ExpertRecipe)


def test_a_fault_in_a_list_is_not_told_of_the_list_too():
    values = {"substrate": "s", "data": "d", "output": "o", "plan": {"stages": [{"new": "x", "share": 1}]}}
    with pytest.raises(TreeringError) as caught:
        check_recipe(values, GrowthRecipe, "grow")
    assert str(caught.value).count("\n") == 0 and "plan.stages.0.new" in str(caught.value)
    with pytest.raises(TreeringError, match=r"plan\.stages: tuple should have at least 1 item"):
        check_recipe(values | {"plan": {"stages": []}}, GrowthRecipe, "grow")


def test_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"data: caf\xe9\n")
    with pytest.raises(TreeringError, match=r"not UTF-8 text \(byte 9\)"):
        load_recipe(path, ExpertRecipe)


def test_values_from_python_are_checked_the_same_way():
    with pytest.raises(TreeringError, match=r"demo: training: value error, give either tokens or epochs"):
        check_recipe(
            {"substrate": "s", "data": "d", "output": "o", "training": {"tokens": 1, "epochs": 1}}, ExpertRecipe, "demo"
        )


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("betas: [1, 1]", "training.betas.0: input should be less than 1"),
        ("betas: [-0.1, 0.9]", "training.betas.0: input should be greater than or equal to 0"),
        ("epochs: .inf", "training.epochs: input should be a finite number (got inf)"),
        ("epochs: 1e400", "training.epochs: input should be a finite number"),
        ("epochs: 1.0e+300", "training.epochs: input should be less than or equal to 1000000"),
        ("learning_rate: .nan", "training.learning_rate: input should be a finite number (got nan)"),
        ("weight_decay: .inf", "training.weight_decay: input should be a finite number"),
        ("seed: -1", "training.seed: input should be greater than or equal to 0 (got -1)"),
        ("seed: 4294967295", "training.seed: input should be less than"),
        ("seed: 2024-01-31", "training.seed: input should be a valid integer"),
        ("tokens: 9000000000000000000", "training.tokens: input should be less than or equal to"),
        ("evaluations: 9000000000000000000", "training.evaluations: input should be less than or equal to"),
        ("{epochs: 1}: 2", "the name of a field must be text"),
        ("tokens: 1\n  tokens: 2", "tokens stands here again, after line 9"),
        ("precision: !!bool x", "'x' is not bool"),
    ],
)
def test_settings_that_no_run_can_take_are_told_before_it(tmp_path, training, expected):
    path = write(
        tmp_path, GOOD.replace("  tokens: 1_000_000\n  learning_rate: 1.0e-3", f"  batch_tokens: 8\n\n  {training}")
    )
    with pytest.raises(TreeringError) as error:
        load_recipe(path, ExpertRecipe)
    line = 10 if "again" in expected else 9
    assert f"{path}:{line}: {expected}" in str(error.value)


@pytest.mark.parametrize("field", ["layers", "d_model", "heads", "context"])
def test_sizes_beyond_any_machine_are_told(tmp_path, field):
    path = write(tmp_path, GOOD.replace("preset: tiny", f"{field}: 1000000000000"))
    with pytest.raises(TreeringError, match=f":5: backbone.{field}: input should be less than or equal to"):
        load_recipe(path, ExpertRecipe)


@pytest.mark.parametrize(
    ("schema", "values", "expected"),
    [
        (GrowthRecipe, {"plan": {"way": "copied", "depth": 10**9}}, "plan.depth: input should be less than or equal"),
        (
            GrowthRecipe,
            {"plan": {"stages": [{"new": "1-99999999999", "share": 1}]}},
            "a stack has 1,000 blocks at most",
        ),
        (GrowthRecipe, {"plan": {"stages": [{"new": [10**12], "share": 1}]}}, "plan.stages.0.new.0: input should be"),
        (StudyRecipe, {"plan": "paper-6", "tokenizer": "t", "seeds": [-1]}, "seeds.0: input should be greater"),
        (
            StudyRecipe,
            {"plan": "paper-6", "tokenizer": "t", "more": {"x": {"stages": [], "y": 1}}},
            "more.x.y: there is no",
        ),
        (CorpusRecipe, {"seed": 2**64}, "seed: input should be less than"),
        (Source, {"path": "a", "weight": float("inf")}, "weight: input should be a finite number"),
        (Source, {"path": "a", "weight": 1e-320}, "weight: input should be greater than or equal to"),
        (Source, {"path": "a", "part": "1/" + "9" * 400}, 'a part is written "1/2"'),
        (Source, {"path": "a", "limit": 2**70}, "limit: input should be"),
    ],
)
def test_numbers_beyond_use_are_told(schema, values, expected):
    with pytest.raises(TreeringError) as error:
        check_recipe({"substrate": "s", "data": "d", "output": "o"} | values, schema, "here")
    assert expected in str(error.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(TreeringError, match="is no file"):
        load_recipe(tmp_path, ExpertRecipe)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TreeringError, match="is no file"):
        load_recipe(tmp_path / "pipe", ExpertRecipe)
    (tmp_path / "large").write_bytes(b"#" * 2**20)
    with pytest.raises(TreeringError, match="larger than 128 KiB"):
        load_recipe(tmp_path / "large", ExpertRecipe)
    (tmp_path / "binary").write_bytes(b"\x7fELF\x02\x01\x01\x00")
    with pytest.raises(TreeringError, match=r"binary:1: not valid YAML: the character U\+007F"):
        load_recipe(tmp_path / "binary", ExpertRecipe)


def test_messages_are_short_and_harmless(tmp_path):
    path = write(tmp_path, GOOD + "x" * 900 + ": 1\n" + "".join(f"a{n}: 1\n" for n in range(500)))
    with pytest.raises(TreeringError) as error:
        load_recipe(path, ExpertRecipe)
    assert len(str(error.value).splitlines()) == 21
    assert len(str(error.value)) < 5_000
    with pytest.raises(TreeringError) as error:
        load_recipe(write(tmp_path, GOOD + '"\\u202e\\u2066": 1\n'), ExpertRecipe)
    assert r"\u202e\u2066" in str(error.value)


SCHEMAS = (ExpertRecipe, GrowthRecipe, StudyRecipe, CorpusRecipe)
FIELDS = sorted(
    {name for schema in SCHEMAS for name in schema.model_fields} | {"way", "depth", "stages", "new", "path"}
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["1-3", "copied-6"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)
)


@settings(max_examples=200)
@given(st.sampled_from(SCHEMAS), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_values_are_a_recipe_or_a_message(schema, changes):
    plain = {"substrate": "s", "tokenizer": "t", "data": "d", "output": "o", "plan": "paper-6", "sources": ["a"]}
    values = {name: value for name, value in plain.items() if name in schema.model_fields} | changes
    try:
        recipe = check_recipe(values, schema, "here")
        if schema is GrowthRecipe:
            steps(as_plan(recipe.plan))
    except TreeringError as error:
        assert str(error).encode()
