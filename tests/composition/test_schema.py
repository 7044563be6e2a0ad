"""A composition's ``config.json`` may hold anything; whatever it is, it is told, or it works."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from treering import tokenizer as tokenizers
from treering.composition import CompositionConfig, list_experts, load_model, reweight, running
from treering.composition.loading import read_composition
from treering.errors import TreeringError
from treering.evaluation import generate

FINGERPRINT = "0" * 64


def rename(name):
    return lambda config: config["experts"][1].update(name=name)


def of_expert(**fields):
    return lambda config: config["experts"][1].update(fields)


def of_model(**fields):
    return lambda config: config["experts"][1]["config"].update(fields)


def nested(depth):
    return [] if depth == 0 else [nested(depth - 1)]


ATTACKS = [
    (rename("q/../../../../."), "cannot be an expert's name"),
    (rename("../zh"), "cannot be an expert's name"),
    (rename("zh\n"), "cannot be an expert's name"),
    (rename("\x1b[31mzh"), "cannot be an expert's name"),
    (rename("\u202ezh"), "cannot be an expert's name"),
    (rename("z" * 101), "cannot be an expert's name"),
    (rename("half"), "PyTorch keeps it for itself"),
    (rename("ru"), "two experts are called ru"),
    (rename(None), "should be a valid string"),
    (of_expert(weight="1"), "weight"),
    (of_expert(weight=True), "weight"),
    (of_expert(weight=float("nan")), "at least 0"),
    (of_expert(weight=float("inf")), "at least 0"),
    (of_expert(weight=-1), "at least 0"),
    (lambda config: [record.update(weight=0) for record in config["experts"]], "All weights are 0"),
    (of_expert(substrate="../../x"), "substrate"),
    (of_expert(substrate=FINGERPRINT), "is not the one that its own configuration names"),
    (of_expert(substrate=None), "is not the one that its own configuration names"),
    (of_expert(fingerprint="x"), "fingerprint"),
    (of_expert(licence=5), "licence"),
    (of_expert(origin="x" * 10_001), "origin"),
    (of_expert(data={"sources": [{}]}), "data.sources.0.name"),
    (of_expert(training={"measured": None}), "training.measured"),
    (of_expert(training={"measured": {"tokens": "many"}}), "tokens"),
    (of_expert(anything=nested(40)), "nested"),
    (of_expert(config=None), "config"),
    (of_model(model_type="../x"), "model_type"),
    (of_model(model_type="nothing"), "Unrecognized model identifier"),
    (of_model(model_type="treering_composition"), "cannot be read"),
    (of_model(dtype="os"), "dtype"),
    (of_model(to_dict=1), "to_dict is no field"),
    (of_model(__class__=1), "__class__ is no field"),
    (of_model(num_hidden_layers=10**9), "more than 10,000 layers"),
    (of_model(num_hidden_layers="2"), "num_hidden_layers"),
    (of_model(vocab_size=0), "above 0"),
    (of_model(treering={"fingerprint": "x", "frozen": True, "tokenizer": "y"}), "fingerprint"),
    (of_model(_attn_implementation="lab/kernel"), "code from elsewhere"),
    (lambda config: config.update(rule=5), "rule"),
    (lambda config: config.update(rule="x" * 1000), "rule"),
    (lambda config: config.update(rule="median"), "no composition rule"),
    (lambda config: config.update(fusion={"nothing": {}}), "no composition rule"),
    (lambda config: config.update(fusion={"gate": 5}), "fusion"),
    (lambda config: config.update(treering="x"), "treering"),
    (lambda config: config.update(substrates={"x": 1}), "substrates"),
    (lambda config: config.update(experts=[]), "names no expert"),
    (lambda config: config.update(experts={}), "names no expert"),
    (lambda config: config.update(experts=config["experts"] * 501), "1000 items"),
    (lambda config: config.update(save_pretrained=1), "save_pretrained is no field"),
    (lambda config: config.update(model_type=5), "model_type"),
]


@pytest.mark.parametrize(("change", "message"), ATTACKS)
def test_what_cannot_be_is_told_by_all_that_read(pair, change, message):
    config = json.loads((pair / "config.json").read_text())
    change(config)
    (pair / "config.json").write_text(json.dumps(config))
    for read in (read_composition, list_experts, load_model, lambda place: reweight(place, {"ru": 2})):
        with pytest.raises(TreeringError, match=message) as error:
            read(pair)
        assert all(line.isprintable() for line in str(error.value).split("\n"))


def test_transformers_alone_is_told_too(pair):
    config = json.loads((pair / "config.json").read_text())
    config["experts"][1]["name"] = "q/../../../../."
    (pair / "config.json").write_text(json.dumps(config))
    for reader in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(TreeringError, match="cannot be an expert's name"):
            reader.from_pretrained(pair)


def test_two_substrates_have_two_files():
    def record(name, fingerprint):
        standing = {"fingerprint": fingerprint, "frozen": True, "tokenizer": FINGERPRINT}
        own = {"model_type": "llama", "dtype": "float32", "treering": standing}
        return {"name": name, "weight": 1.0, "substrate": fingerprint, "config": own}

    with pytest.raises(TreeringError, match="two substrates have one name"):
        CompositionConfig([record("a", "0" * 64), record("b", "0" * 63 + "1")])


def test_sizes_follow_from_the_experts_whatever_the_file_says(pair):
    expected = load_model(pair).config
    config = json.loads((pair / "config.json").read_text())
    (pair / "config.json").write_text(json.dumps(config | {"vocab_size": 10**9, "max_position_embeddings": 10**9}))
    found = load_model(pair).config
    assert found.vocab_size == expected.vocab_size
    assert found.max_position_embeddings == expected.max_position_embeddings


ODD = [None, True, 0, -1, 3, 10**9, 2**64, 1.5, float("nan"), "", "x", "\x1b[31m", [], ["x"], {}, {"a": 1}, nested(50)]


def places(values, path=()):
    """The paths of all values inside JSON."""
    if path:
        yield path
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield from places(values[key], (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_values_of_other_types_are_told_or_work(pair, data):
    """At any key of any of a composition's JSON files."""
    files = [path for path in sorted(pair.iterdir()) if path.suffix == ".json"]
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    values = json.loads(before)
    *way, last = data.draw(st.sampled_from(list(places(values))))
    inner = values
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(ODD))
    file.write_text(json.dumps(values))
    try:
        for read in (list_experts, write_text_with, lambda place: reweight(place, {"ru": 1})):
            try:
                read(pair)
            except TreeringError as error:
                assert all(line.isprintable() for line in str(error).split("\n"))
    finally:
        file.write_bytes(before)


def write_text_with(place):
    tokenizer, model = tokenizers.load(place), load_model(place)
    with running(place):
        generate(model, tokenizer, "To open", 2, seed=0)
