from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from treering.composition import (
    add_expert,
    compose,
    fit_directory,
    list_experts,
    load_model,
    remove_expert,
    reweight,
    set_rule,
)
from treering.errors import TreeringError


def flip(path):
    """One bit of the last tensor."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def content(place):
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("whose", ["expert zh", "substrate"])
def test_a_flipped_bit_is_told_by_all_that_load_or_write(saved, pair, whose):
    (file,) = pair.glob("expert-zh.safetensors" if whose == "expert zh" else "substrate-*.safetensors")
    flip(file)
    before = content(pair)
    for use in (
        load_model,
        AutoModelForCausalLM.from_pretrained,
        lambda place: load_model(place, dtype=torch.bfloat16),
        lambda place: reweight(place, {"ru": 2}),
        lambda place: set_rule(place, "mean"),
        lambda place: add_expert(place, saved["en"], "en"),
        lambda place: remove_expert(place, "ru"),
    ):
        with pytest.raises(TreeringError, match=f"does not hold the {whose}") as error:
            use(pair)
        assert file.name in str(error.value)
    assert content(pair) == before
    assert [record["name"] for record in list_experts(pair)] == ["ru", "zh"]


def test_a_damaged_expert_may_leave(pair):
    flip(pair / "expert-zh.safetensors")
    remove_expert(pair, "zh")
    load_model(pair)


def test_what_was_fitted_has_a_fingerprint_too(pair, pages):
    fit_directory(pair, {"ru": pages["ru"][:4], "zh": pages["zh"][:4]}, "gate", 400)
    load_model(pair)
    flip(pair / "fusion.safetensors")
    with pytest.raises(TreeringError, match="does not hold the fit gate"):
        load_model(pair)


def test_compositions_of_before_load_and_are_recorded_when_written(pair):
    expected = content(pair)
    config = json.loads((pair / "config.json").read_text())
    del config["substrates"]
    for record in config["experts"]:
        del record["fingerprint"]
    (pair / "config.json").write_text(json.dumps(config))
    load_model(pair)
    reweight(pair, {"ru": 1})
    assert content(pair) == expected


def test_an_expert_that_trains_gets_another_fingerprint_and_a_substrate_may_not(pair, tmp_path):
    model, before = load_model(pair), list_experts(pair)
    with torch.no_grad():
        model.experts["zh"].lm_head.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "trained")
    load_model(tmp_path / "trained")
    ru, zh = list_experts(tmp_path / "trained")
    assert ru["fingerprint"] == before[0]["fingerprint"] and zh["fingerprint"] != before[1]["fingerprint"]
    (substrate,) = model.substrates.values()
    with torch.no_grad():
        substrate.weight[5, 5] += 1e-3
    with pytest.raises(TreeringError, match="is frozen"):
        model.save_pretrained(tmp_path / "spoilt")
    assert not list((tmp_path / "spoilt").glob("*.safetensors"))


def test_a_substrate_changed_after_composing_is_not_saved(expert, tmp_path):
    model = compose({"a": expert(0, 1), "b": expert(1, 1)})
    (substrate,) = model.substrates.values()
    with torch.no_grad():
        substrate.weight.mul_(2)
    with pytest.raises(TreeringError, match="is frozen"):
        model.save_pretrained(tmp_path / "spoilt")


def test_in_another_precision_it_is_saved_as_what_it_is(pair, tmp_path):
    model = load_model(pair, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    (matrix,) = load_model(tmp_path / "half").config.substrates.values()
    assert matrix["dtype"] == "bfloat16"
    load_model(tmp_path / "half").to(torch.float32).save_pretrained(tmp_path / "again")
    load_model(tmp_path / "again")


def test_another_experts_tensors_do_not_pass_for_an_experts(pair):
    shard = load_file(pair / "expert-zh.safetensors")
    name = next(iter(shard))
    shard[name] = shard[name] + 1
    save_file(shard, pair / "expert-zh.safetensors", metadata={"format": "pt"})
    with pytest.raises(TreeringError, match="does not hold the expert zh"):
        load_model(pair)
