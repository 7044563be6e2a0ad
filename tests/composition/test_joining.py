from __future__ import annotations

import copy

import pytest
import torch

from treering.backbone import embedding
from treering.composition import add_expert, compose, compose_directories
from treering.errors import TreeringError


@pytest.mark.parametrize("changed", ["first", "second"])
def test_nobody_is_accused_when_two_matrices_differ(expert, changed):
    experts = {"first": expert(0, 1), "second": expert(1, 1)}
    with torch.no_grad():
        embedding(experts[changed]).weight[3, 3] += 1
    with pytest.raises(TreeringError, match=r"first, second name one substrate .* hold different matrices") as error:
        compose(experts)
    assert "One was changed after docking" in str(error.value)


def test_those_that_agree_are_named_together(expert):
    experts = {name: expert(seed, 1) for seed, name in enumerate(["a", "b", "c"])}
    with torch.no_grad():
        embedding(experts["a"]).weight[3, 3] += 1
    with pytest.raises(TreeringError) as error:
        compose(experts)
    assert "one matrix: a\n" in str(error.value) and "one matrix: b, c\n" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_experts_with_weights_that_are_no_numbers_are_refused(saved, pair, expert, tmp_path, value):
    spoilt = copy.deepcopy(expert(1, 1))
    key = "gpt_neox.final_layer_norm.weight"
    with torch.no_grad():
        spoilt.get_parameter(key)[:2] = value
    message = f"spoilt cannot be joined: 2 of the 64 numbers in its {key}"
    with pytest.raises(TreeringError, match=message):
        compose({"sound": expert(0, 1), "spoilt": spoilt})
    spoilt.save_pretrained(tmp_path / "spoilt")
    for file in saved["ru"].glob("tokenizer*"):
        (tmp_path / "spoilt" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TreeringError, match=message):
        add_expert(pair, tmp_path / "spoilt", "spoilt")
    with pytest.raises(TreeringError, match=message):
        compose_directories({"ru": saved["ru"], "spoilt": tmp_path / "spoilt"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
