"""The mean of models' weights: the numbers, the record, and whom it refuses."""

from __future__ import annotations

import copy
import json
import re
import weakref

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from treering import tokenizer as tokenizers
from treering.backbone import embedding
from treering.composition import average, compose_directories, describe, load_model
from treering.composition.averaging import Part, mean
from treering.errors import TreeringError

COMMON = "0" * 64


@pytest.fixture
def save(tokenizer, tmp_path):
    """``save(name, model, origin)``: the model in a directory, with what its training record says of its origin."""

    def write(name, model, **origin):
        place = tmp_path / name
        model.save_pretrained(place)
        tokenizers.save(tokenizer, place)
        record = {"origin": {"weights": COMMON, "start": "common", "data": {"sources": [{"name": name}]}} | origin}
        (place / "training.json").write_text(json.dumps(record))
        return place

    return write


@pytest.fixture
def owners(expert, save):
    return {name: save(name, expert(seed)) for seed, name in enumerate(("north", "south", "west"))}


@hypothesis.given(weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4))
@hypothesis.settings(max_examples=10)
def test_it_is_the_weighted_mean_and_leaves_what_is_alike_to_the_bit(expert, weights):
    models = [expert(seed, 1) for seed in range(len(weights))]
    wanted = {
        name: sum(w * dict(m.named_parameters())[name].double() for w, m in zip(weights, models, strict=True))
        / sum(weights)
        for name, _ in models[0].named_parameters()
    }
    substrate = embedding(models[0]).weight.clone()
    found = mean(Part(f"{n}", copy.deepcopy(m), w) for n, (m, w) in enumerate(zip(models, weights, strict=True)))
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-5, atol=1e-6)
    assert embedding(found).weight.equal(substrate)


def test_two_models_are_in_memory_at_a_time(expert):
    alive = []

    def one(seed):
        assert sum(model() is not None for model in alive) < 2
        model = expert(seed, 1)
        alive.append(weakref.ref(model))
        return Part(f"{seed}", model, 1.0)

    assert mean(one(seed) for seed in range(4)) is alive[0]()
    assert len(alive) == 4


def test_the_widest_precision_stays(expert):
    halves = [Part("a", expert(0, 1).bfloat16(), 1), Part("b", expert(1, 1).bfloat16(), 1)]
    wanted = (halves[0].model.lm_head.weight.float() + halves[1].model.lm_head.weight.float()) / 2
    found = mean(Part(n, copy.deepcopy(m), w) for n, m, w in halves)
    assert found.dtype == torch.bfloat16
    assert found.lm_head.weight.equal(wanted.bfloat16())
    assert mean([halves[0], Part("b", expert(1, 1).bfloat16().float(), 1)]).dtype == torch.float32


def test_it_is_a_plain_model_that_says_whose_mean_it_is(owners, tmp_path, tokenizer, expert):
    (owners["south"] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    average(owners, tmp_path / "all", {"south": 2.0})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "all").eval()
    ids = torch.tensor([tokenizer("To open this dialog")["input_ids"]])
    by_hand = expert(0)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            north, south, west = (dict(expert(seed).named_parameters())[name] for seed in range(3))
            parameter.copy_((north + 2 * south + west) / 4)
        torch.testing.assert_close(plain(ids).logits, by_hand(ids).logits, rtol=1e-4, atol=1e-4)
        assert load_model(tmp_path / "all")(ids).logits.equal(plain(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "all")("Файл")["input_ids"] == tokenizer("Файл")["input_ids"]
    origin = json.loads((tmp_path / "all" / "training.json").read_text())["origin"]
    assert [(one["name"], one["share"]) for one in origin["average"]] == [
        ("north", 0.25),
        ("south", 0.5),
        ("west", 0.25),
    ]
    assert (origin["start"], origin["sources"]) == ("common", ["north", "south", "west"])
    card = (tmp_path / "all" / "README.md").read_text()
    assert "the mean of the weights of 3 models" in card and "| south |" in card
    assert "The models that it is the mean of: cc-by-nc-4.0." in card
    told = describe(tmp_path / "all")
    assert [source["name"] for source in told["data"]["sources"]] == ["north", "south", "west"]
    compose_directories({"all": tmp_path / "all", "north": owners["north"]}, tmp_path / "joined")  # it is an expert


def test_who_did_not_begin_as_one_has_no_mean(owners, save, expert, tmp_path):
    def refused(match, **models):
        with pytest.raises(TreeringError, match=match):
            average({"north": owners["north"]} | models, tmp_path / "mean")
        assert not (tmp_path / "mean").exists()

    save("alone", expert(3), weights=None)
    refused("alone went on from no other model", alone=tmp_path / "alone")
    save("stranger", expert(3), weights="1" * 64)
    refused("north and stranger went on from different models", stranger=tmp_path / "stranger")
    save("taller", expert(3), growth={"plan": {"stages": [{"new": "3-4"}]}})
    refused(r"taller has new blocks \(3-4\)", taller=tmp_path / "taller")
    average({"north": owners["north"], "alone": tmp_path / "alone"}, tmp_path / "mean", any_beginning=True)


def test_what_has_no_mean_is_refused(owners, save, expert, tmp_path):
    out = tmp_path / "mean"
    save("deeper", expert(0, 3))
    with pytest.raises(TreeringError, match=r"north and deeper are no models of one kind.*num_hidden_layers: 2 and 3"):
        average({"north": owners["north"], "deeper": tmp_path / "deeper"}, out)
    changed = expert(0)
    changed.gpt_neox.embed_in.weight.data[3, 3] += 1
    save("changed", changed)
    with pytest.raises(TreeringError, match=r"north, changed name one substrate in config\.json, but hold different"):
        average({"north": owners["north"], "changed": tmp_path / "changed"}, out)
    diverged = expert(0)
    diverged.lm_head.weight.data[3, 3] = torch.nan
    save("diverged", diverged)
    for pair in (("diverged", "north"), ("north", "diverged")):
        with pytest.raises(TreeringError, match=r"diverged cannot be joined: 1 of .* in its lm_head\.weight"):
            average({name: tmp_path / name for name in pair}, out)
    with pytest.raises(TreeringError, match="at least two models, not 1"):
        average({"north": owners["north"]}, out)
    with pytest.raises(TreeringError, match=r"no model 'nobody'\. There are: north, south, west"):
        average(owners, out, {"nobody": 1.0})
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(TreeringError, match="it has to be a number above 0"):
            average(owners, out, {"west": weight})
    compose_directories({"a": owners["north"], "b": owners["south"]}, tmp_path / "joined")
    with pytest.raises(TreeringError, match="is a composition"):
        average({"joined": tmp_path / "joined", "north": owners["north"]}, out, any_beginning=True)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(TreeringError, match="exists"):
        average(owners, out)


def test_branches_of_one_trunk_have_a_mean_whatever_their_base_is_called(save, expert, tmp_path):
    def branch(name, **trunk):
        model = expert(len(trunk["base"]))
        model.config.treering_trunk = trunk
        return save(name, model)

    places = {base: branch(base, base=base, blocks=1, trunk=COMMON) for base in ("smol", "SmolLM")}
    average(places, tmp_path / "mean")
    assert describe(tmp_path / "mean")["kind"] == "branch"
    other = branch("higher", base="smol", blocks=2, trunk=COMMON)
    with pytest.raises(TreeringError, match="no models of one kind, and have no mean: treering_trunk"):
        average({"smol": places["smol"], "higher": other}, tmp_path / "none")


def test_damaged_records_are_told(owners, tmp_path):
    (owners["south"] / "training.json").write_text('{"origin": {"weights": "x"}}')
    with pytest.raises(TreeringError, match=r"training.json: origin.weights"):
        average(owners, tmp_path / "mean")
    (owners["south"] / "training.json").write_text('{"origin": {"teacher": "north"}}')
    with pytest.raises(TreeringError, match=r"training.json: origin.teacher"):
        describe(owners["south"])


def test_on_the_command_line(owners, treering, tmp_path):
    status, _, said = treering(f"model average {owners['north']} s={owners['south']} --weight s=3 -o mean")
    assert status == 0 and "mean: the mean of north, s" in said
    treering(f"model average {owners['north']} again={owners['north']} -o same")
    assert re.search(r"trained on +north *\n", treering("model info same")[1])  # once
    status, out, _ = treering("model info mean")
    assert status == 0 and "north (25.0%), s (75.0%)" in out and "went on from" in out
    assert treering(f"model average {owners['north']} {owners['north']} -o again")[0] == 2
