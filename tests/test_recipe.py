from __future__ import annotations

import pytest

from treering.errors import TreeringError
from treering.growth import GrowthRecipe
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
        check_recipe({"substrate": "s", "data": "d", "output": "o", "training": {}}, ExpertRecipe, "demo")
