from __future__ import annotations

import json

import pytest

from treering import tokenizer as tokenizers
from treering.composition import cut, describe, load_model
from treering.errors import TreeringError
from treering.growth import GrowthRecipe, grow_recipe
from treering.recipe import check_recipe


@pytest.fixture(scope="module")
def branch(tokenizer, expert, corpus, tmp_path_factory):
    """A base, and a branch of one block on it."""
    place = tmp_path_factory.mktemp("described")
    expert(0, 2).save_pretrained(place / "base")
    tokenizers.save(tokenizer, place / "base")
    values = {
        "model": str(place / "base"),
        "data": str(corpus.directory),
        "output": str(place / "branch"),
        "plan": {"way": "branch", "blocks": 1},
        "training": {"tokens": 1024, "batch_tokens": 256, "evaluations": 1},
        "abilities": False,
    }
    grow_recipe(check_recipe(values, GrowthRecipe, "test"))
    return place / "branch"


def test_a_branch_is_told_with_what_it_stands_on_and_has_read(branch, tmp_path):
    known = describe(branch)
    assert (known["kind"], known["layers"], known["base"]["base"], known["base"]["blocks"]) == ("branch", 3, "base", 2)
    assert known["parameters"] == sum(p.numel() for p in load_model(branch).parameters())
    assert known["training"]["measured"]["tokens"] == 1024 and known["data"]["sources"][0]["name"] == "ru"
    assert known["precisions"] == ["F32"] and known["bytes"] > 4 * known["parameters"]
    own = len(cut(branch, tmp_path / "cut"))
    alone = describe(tmp_path / "cut")
    assert own and alone["kind"] == "branch without its trunk" and alone["parameters"] < known["parameters"]
    assert alone["base"] == known["base"]


def test_what_is_damaged_is_one_message(branch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "num_hidden_layers": "many"}))
    with pytest.raises(TreeringError, match="many"):
        describe(tmp_path)
    (tmp_path / "config.json").write_bytes((branch / "config.json").read_bytes())
    with pytest.raises(TreeringError, match=r"model\.safetensors"):
        describe(tmp_path)
