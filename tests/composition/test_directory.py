from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import dock
from treering.composition import (
    ComposedModel,
    add_expert,
    compose_directories,
    directory,
    fit_directory,
    list_experts,
    load_model,
    remove_expert,
    reweight,
    set_rule,
)
from treering.errors import TreeringError


@pytest.fixture(scope="module")
def saved(expert, tokenizer, tmp_path_factory):
    """Three experts' directories, by name."""
    places = {}
    for seed, (name, layers, family) in enumerate([("ru", 2, "gpt_neox"), ("zh", 1, "gpt_neox"), ("en", 1, "llama")]):
        place = tmp_path_factory.mktemp("experts") / name
        expert(seed, layers, family).save_pretrained(place)
        tokenizers.save(tokenizer, place)
        data = {"sources": [{"name": name}]}
        record = {"origin": {"data": data, "sources": [name]}, "measured": {"tokens": 100_000}}
        (place / "training.json").write_text(json.dumps(record))
        places[name] = place
    return places


@pytest.fixture
def pair(saved, tmp_path):
    compose_directories({name: saved[name] for name in ("ru", "zh")}, tmp_path / "pair")
    return tmp_path / "pair"


def content(place):
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_adding_makes_what_composing_all_would_have_made(saved, pair, tmp_path):
    compose_directories(saved, tmp_path / "all")
    add_expert(pair, saved["en"], "en")
    assert content(pair) == content(tmp_path / "all")


def test_removing_leaves_no_trace(saved, pair, tmp_path):
    compose_directories(saved, tmp_path / "all", records={"en": {"licence": "CC0", "weight": 5.0}})
    own = [t for t in load_file(tmp_path / "all" / "expert-en.safetensors").values() if t.std() > 0]
    assert remove_expert(tmp_path / "all", "en") == []
    assert content(tmp_path / "all") == content(pair)
    for file, data in content(pair).items():
        assert b"llama" not in data and b"CC0" not in data
        assert all(tensor.numpy().tobytes()[:64] not in data for tensor in own), file


def test_the_first_may_leave_too_and_one_may_stay_alone(saved, pair):
    remove_expert(pair, "ru")
    alone, expert = load_model(pair), load_model(saved["zh"])
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits.softmax(-1), expert(ids).logits.softmax(-1))
    with pytest.raises(TreeringError, match="the only expert"):
        remove_expert(pair, "zh")


def test_shards_of_those_that_stay_are_not_written_again(saved, pair):
    before = {path.name: path.stat().st_ino for path in pair.glob("*.safetensors")}
    add_expert(pair, saved["en"], "en")
    after = {path.name: path.stat().st_ino for path in pair.glob("*.safetensors")}
    assert {name: after[name] for name in before} == before


def test_records_name_origin_licence_data_and_fingerprint(saved, tmp_path):
    (saved["ru"] / "README.md").write_text("---\nlicense: mit\n---\nAn expert.\n")
    compose_directories(saved, tmp_path / "all", records={"zh": {"licence": "CC-BY-4.0", "origin": "a far lab"}})
    (saved["ru"] / "README.md").unlink()
    ru, zh, _ = list_experts(tmp_path / "all")
    assert (ru["origin"], ru["licence"], ru["data"]) == ("ru", "mit", {"sources": [{"name": "ru"}]})
    assert (zh["origin"], zh["licence"]) == ("a far lab", "CC-BY-4.0")
    digest = hashlib.sha256()
    tensors = {k: v for k, v in load_model(saved["ru"]).state_dict().items() if "embed_in" not in k}
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, "float32", list(tensor.shape)]).encode() + b"\n" + tensor.numpy().tobytes())
    assert ru["fingerprint"] == digest.hexdigest()
    assert ru["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    for data in content(tmp_path / "all").values():
        assert str(saved["ru"].parent).encode() not in data


def test_weights_are_the_prior(pair):
    reweight(pair, {"ru": 3})
    model = load_model(pair)
    torch.testing.assert_close(model.prior.exp(), torch.tensor([0.75, 0.25]))
    assert [record["share"] for record in list_experts(pair)] == [0.75, 0.25]


def test_a_rule_is_stored(pair):
    set_rule(pair, "evidence:switch=0.010")
    assert str(load_model(pair).rule) == "evidence:switch=0.01"
    assert str(load_model(pair, rule="mean").rule) == "mean"


@pytest.mark.parametrize("rule", ["gate:switch=0.1", "gate:pool=log", "adapter", "weighted"])
def test_what_was_fitted_is_kept_and_leaves_with_the_experts(saved, pair, pages, tmp_path, rule):
    done = fit_directory(pair, {"ru": pages["ru"][:6], "zh": pages["zh"][:6]}, rule, 800)
    assert done.after <= done.before
    model = load_model(pair)
    assert str(model.rule) == rule
    assert model.config.fusion[rule.partition(":")[0]]["tokens"] == 800
    for change in (lambda: remove_expert(pair, "zh"), lambda: add_expert(pair, saved["en"], "en")):
        before = content(pair)
        with pytest.raises(TreeringError, match="fitted to all experts"):
            change()
        assert content(pair) == before
    add_expert(pair, saved["en"], "en", rule="evidence")
    compose_directories(saved, tmp_path / "all")
    assert content(pair) == content(tmp_path / "all")


def test_a_failure_in_the_middle_changes_nothing(saved, pair, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = content(pair)
    for name in ("write_shard", "write_description"):
        with monkeypatch.context() as patch:
            patch.setattr(directory.layout, name, full)
            with pytest.raises(TreeringError, match="No space left"):
                add_expert(pair, saved["en"], "en")
    assert content(pair) == before
    assert [path.name for path in pair.parent.iterdir()] == ["pair"]


def test_experts_on_two_substrates_of_one_tokenizer(saved, pair, tokenizer, tmp_path):
    config = copy.deepcopy(load_model(saved["ru"]).config)
    config.hidden_size = 96
    config.intermediate_size = 128
    wide = dock(config, substrates.build(tokenizer, 96, kind="random"), tokenizer).eval()
    wide.save_pretrained(tmp_path / "wide")
    tokenizers.save(tokenizer, tmp_path / "wide")
    with pytest.raises(TreeringError, match="different substrates"):
        add_expert(pair, tmp_path / "wide", "wide")
    add_expert(pair, tmp_path / "wide", "wide", across_substrates=True)
    model, ids = load_model(pair), torch.arange(5, 15)[None]
    assert len(model.substrates) == 2
    with torch.no_grad():
        logits, _ = model.read(ids)
        for own, place in zip(logits, (saved["ru"], saved["zh"], tmp_path / "wide"), strict=True):
            assert own.equal(load_model(place)(ids).logits)


def test_strangers_with_tied_and_padded_embeddings(tokenizer, tmp_path):
    places, ids = {}, torch.arange(5, 25)[None]
    for seed, padding in enumerate((0, 12)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer) + padding,
            hidden_size=32 + 16 * seed,
            intermediate_size=48,
            num_hidden_layers=1 + seed,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.3,
        )
        place = tmp_path / f"stranger{seed}"
        LlamaForCausalLM(config).save_pretrained(place)
        tokenizers.save(tokenizer, place)
        places[place.name] = place
    with pytest.raises(TreeringError, match="names no substrate"):
        compose_directories(places, tmp_path / "joined")
    compose_directories(places, tmp_path / "joined", across_substrates=True)
    model, experts = load_model(tmp_path / "joined"), [load_model(place) for place in places.values()]
    assert isinstance(model, ComposedModel) and model.config.vocab_size == len(tokenizer)
    expected = ids
    for _ in range(8):
        with torch.no_grad():
            logs = [e(expected).logits[0, :, : len(tokenizer)].double().log_softmax(-1) for e in experts]
        said = torch.stack([log[:-1].gather(-1, expected[0, 1:, None]).sum() for log in logs])
        token = (said.softmax(0) @ torch.stack([log[-1].exp() for log in logs])).argmax()
        expected = torch.cat([expected, token[None, None]], 1)
    assert model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=-1).equal(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place, saved: add_expert(place, saved["en"], "ru"), "called 'ru' already"),
        (lambda place, saved: add_expert(place, saved["en"], "e/n"), "cannot be an expert's name"),
        (lambda place, saved: remove_expert(place, "fr"), "no expert 'fr'. There are: ru, zh"),
        (lambda place, saved: remove_expert(saved["ru"], "ru"), "not a composition"),
        (lambda place, saved: reweight(place, {"fr": 1}), "no expert 'fr'"),
        (lambda place, saved: reweight(place, {"ru": -1}), "at least 0"),
        (lambda place, saved: reweight(place, {"ru": float("nan")}), "at least 0"),
        (lambda place, saved: reweight(place, {"ru": 0, "zh": 0}), "All weights are 0"),
        (lambda place, saved: set_rule(place, "median"), "no composition rule"),
        (lambda place, saved: set_rule(place, "gate"), "has to be fitted"),
        (lambda place, saved: fit_directory(place, {"ru": ["x"]}, "evidence"), "nothing to fit"),
        (lambda place, saved: fit_directory(place, {"ru": [""]}, "weighted"), "no text"),
        (lambda place, saved: load_model(saved["ru"], rule="mean"), "single gpt_neox model"),
    ],
)
def test_what_cannot_work_changes_nothing(saved, pair, change, message):
    before = content(pair)
    with pytest.raises(TreeringError, match=message):
        change(pair, saved)
    assert content(pair) == before
