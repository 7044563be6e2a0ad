from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import dock
from treering.composition import (
    DEFAULT_RULE,
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
    assert model.prior.exp().tolist() == pytest.approx([0.75, 0.25])
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
    add_expert(pair, saved["en"], "en", rule=DEFAULT_RULE)
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


def test_what_a_process_left_that_died_when_it_was_done_goes_with_the_same_command(saved, pair):
    """It has nothing to do then, and says so."""
    lock, old = pair.with_name(f".{pair.name}.lock"), pair.with_name(f".{pair.name}.abcdefgh.replaced")
    for again in (lambda: remove_expert(pair, "fr"), lambda: add_expert(pair, "ru", saved["ru"])):
        lock.touch()
        old.mkdir()
        with pytest.raises(TreeringError, match=r"fr|ru"):
            again()
        assert not lock.exists() and not old.exists()


def test_without_links_files_are_copied(saved, pair, tmp_path, monkeypatch):
    def no_links(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    compose_directories(saved, tmp_path / "all")
    monkeypatch.setattr(os, "link", no_links)
    add_expert(pair, saved["en"], "en")
    assert content(pair) == content(tmp_path / "all")


def test_leaving_and_weighing_load_no_model(saved, tmp_path, monkeypatch):
    def weights_are_read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    compose_directories(saved, tmp_path / "all")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", weights_are_read)
    remove_expert(tmp_path / "all", "ru")
    reweight(tmp_path / "all", {"en": 2})
    set_rule(tmp_path / "all", "mean")
    assert [record["weight"] for record in list_experts(tmp_path / "all")] == [1, 2]


def test_no_file_holds_the_name_of_one_that_left(saved, pair):
    before = content(pair)
    add_expert(pair, saved["en"], "zyzzyva", record={"origin": "zyzzyva & co"})
    assert any(b"zyzzyva" in data for data in content(pair).values())
    remove_expert(pair, "zyzzyva")
    assert content(pair) == before
    assert not any(b"zyzzyva" in data for data in content(pair).values())


def test_tokenizers_that_differ_beside_their_ids_come_and_go_too(saved, tokenizer, tmp_path):
    talking = {}
    for name in ("ru", "en"):
        own = copy.deepcopy(tokenizer)
        own.chat_template = f"{{# of {name} #}}"
        talking[name] = tmp_path / name
        shutil.copytree(saved[name], talking[name])
        tokenizers.save(own, talking[name])
    places = {"ru": talking["ru"], "zh": saved["zh"], "en": talking["en"]}
    compose_directories(places, tmp_path / "all")
    assert tokenizers.load(tmp_path / "all").chat_template == "{# of ru #}"
    for leaving, staying in (("ru", ("zh", "en")), ("zh", ("ru", "en")), ("en", ("ru", "zh"))):
        compose_directories({name: places[name] for name in staying}, tmp_path / f"without-{leaving}")
        shutil.copytree(tmp_path / "all", tmp_path / f"left-{leaving}")
        remove_expert(tmp_path / f"left-{leaving}", leaving)
        assert content(tmp_path / f"left-{leaving}") == content(tmp_path / f"without-{leaving}")
    remove_expert(tmp_path / "left-ru", "zh")
    assert tokenizers.load(tmp_path / "left-ru").chat_template == "{# of en #}"
    assert not (tmp_path / "left-ru" / "tokenizers").exists()


def test_files_of_the_user_stay_and_are_named(pair, tmp_path):
    (pair / "README.md").write_text("Made of ru and zh.")
    (pair / "notes").mkdir()
    (pair / "notes" / "link").symlink_to("nowhere")
    assert remove_expert(pair, "zh") == ["README.md", "notes/link"]
    assert (pair / "README.md").read_text() == "Made of ru and zh."
    assert (pair / "notes" / "link").readlink() == Path("nowhere")


def hostile(place, name):
    """A composition with an expert called so, and links that make of its name a way out."""
    text = (place / "config.json").read_text().replace('"name": "zh"', f'"name": "{name}"')
    (place / "config.json").write_text(text)
    index = (place / "model.safetensors.index.json").read_text()
    (place / "model.safetensors.index.json").write_text(index.replace("expert-zh", f"expert-{name}"))
    deep = place / "payload" / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (place / "expert-zh.safetensors").rename(place / "payload" / "..safetensors")
    (place / "payload" / "authorized_keys").write_text("theirs")
    (place / "expert-q").symlink_to("payload/a/b/c/d")
    (place / "tokenizers").mkdir()
    (place / "tokenizers" / "q").symlink_to("../payload/a/b/c/d")
    return place


CHANGES = {
    "reweight": lambda place, saved: reweight(place, {"ru": 2}),
    "rule": lambda place, saved: set_rule(place, "mean"),
    "add": lambda place, saved: add_expert(place, saved["en"], "en"),
    "remove": lambda place, saved: remove_expert(place, "ru"),
    "fit": lambda place, saved: fit_directory(place, {"ru": ["text"]}, "weighted"),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_no_name_leads_out_of_a_composition(saved, pair, tmp_path, verb):
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "authorized_keys").write_text("mine")
    place = hostile(pair.rename(home / "work" / "pair"), "q/../../../../.")
    before = content(tmp_path)
    with pytest.raises(TreeringError, match="cannot be an expert's name"):
        CHANGES[verb](place, saved)
    assert content(tmp_path) == before


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("file", ["expert-zh.safetensors", "tokenizer.json", "generation_config.json", "tokenizers"])
def test_no_file_of_a_composition_is_a_link_when_it_is_changed(saved, pair, tmp_path, verb, file):
    outside = tmp_path / "outside"
    if (pair / file).exists():
        (pair / file).rename(outside)
    else:
        shutil.copytree(saved["ru"], outside / "zh")
    (pair / file).symlink_to(outside)
    before = content(tmp_path)
    with pytest.raises(TreeringError, match="is a link, which Treering does not follow"):
        CHANGES[verb](pair, saved)
    assert content(tmp_path) == before


def test_directories_of_the_user_that_are_links_are_not_walked_into(pair, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_text("a photo")
    (pair / "photos").symlink_to(tmp_path / "photos")
    assert remove_expert(pair, "zh") == ["photos"]
    assert (pair / "photos").readlink() == tmp_path / "photos"
    assert (tmp_path / "photos" / "one").read_text() == "a photo"


def test_devices_are_refused(pair):
    os.mkfifo(pair / "notes")
    with pytest.raises(TreeringError, match="no ordinary file"):
        reweight(pair, {"ru": 2})


def test_a_change_that_somebody_else_overtook_is_not_made(saved, pair, monkeypatch):
    honest = directory.compose

    def slow(*arguments, **options):
        monkeypatch.undo()
        reweight(pair, {"ru": 7})
        return honest(*arguments, **options)

    monkeypatch.setattr(directory, "compose", slow)
    with pytest.raises(TreeringError, match="changed by somebody else meanwhile"):
        add_expert(pair, saved["en"], "en")
    assert [(record["name"], record["weight"]) for record in list_experts(pair)] == [("ru", 7), ("zh", 1)]


def test_another_tokenizer_is_refused_naming_both(saved, pair, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<one more>"])
    stranger = load_model(saved["en"])
    del stranger.config.treering
    for name in ("stranger", pair.name):  # called as the composition's directory is, too
        place = tmp_path / "elsewhere" / name
        stranger.save_pretrained(place)
        tokenizers.save(other, place)
        with pytest.raises(TreeringError, match="different tokenizers") as error:
            add_expert(pair, place, name, across_substrates=True)
        with pytest.raises(TreeringError, match="different tokenizers"):
            compose_directories({"ru": saved["ru"], name: place}, tmp_path / "out", across_substrates=True)
        for each in (tokenizer, other):
            assert tokenizers.identity(each) in str(error.value)


def test_a_tokenizer_that_was_exchanged_after_training_is_refused(saved, pair, tokenizer, tmp_path):
    shutil.copytree(saved["en"], tmp_path / "en")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<one more>"])
    tokenizers.save(other, tmp_path / "en")
    with pytest.raises(TreeringError, match="is not the one that its config"):
        add_expert(pair, tmp_path / "en", "en")


def test_a_changed_embedding_is_refused(saved, pair, tmp_path):
    changed = load_model(saved["zh"])
    with torch.no_grad():
        changed.get_input_embeddings().weight[5, 5] += 1e-3
    changed.save_pretrained(tmp_path / "changed")
    tokenizers.save(tokenizers.load(saved["zh"]), tmp_path / "changed")
    before = content(pair)
    with pytest.raises(TreeringError, match="was changed after docking"):
        add_expert(pair, tmp_path / "changed", "changed")
    assert content(pair) == before


@pytest.mark.parametrize("damage", ["expert-zh.safetensors", "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_composition_does_not_load(pair, damage, cut):
    data = (pair / damage).read_bytes()
    (pair / damage).unlink()
    if cut:
        (pair / damage).write_bytes(data[: len(data) // 2])
    with pytest.raises(TreeringError):
        load_model(pair)
    if damage != "model.safetensors.index.json":
        with pytest.raises(TreeringError):
            remove_expert(pair, "ru")


def test_tensors_that_the_index_forgot_are_missed(pair):
    index = json.loads((pair / "model.safetensors.index.json").read_text())
    gone = next(name for name in index["weight_map"] if name.startswith("experts.zh."))
    del index["weight_map"][gone]
    (pair / "model.safetensors.index.json").write_text(json.dumps(index))
    shard = load_file(pair / "expert-zh.safetensors")
    del shard[gone]
    save_file(shard, pair / "expert-zh.safetensors", metadata={"format": "pt"})
    with pytest.raises(TreeringError, match=r"expert-zh.safetensors is damaged .* does not hold the expert zh"):
        load_model(pair)
    config = json.loads((pair / "config.json").read_text())
    del config["experts"][1]["fingerprint"]  # as before there were any
    (pair / "config.json").write_text(json.dumps(config))
    with pytest.raises(TreeringError, match=f"lack 1 of the model's tensors, such as {gone}"):
        load_model(pair)


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
        (lambda place, saved: add_expert(place, saved["en"], "half"), "PyTorch keeps it for itself"),
        (lambda place, saved: add_expert(place, saved["en"], "en", record={"weight": -1.0}), "at least 0"),
        (lambda place, saved: add_expert(place, saved["en"], "en", rule="median"), "no composition rule"),
        (lambda place, saved: add_expert(place, place, "self"), "is a composition, of ru, zh"),
        (lambda place, saved: add_expert(place, place.parent / "none", "none"), "There is no directory"),
        (lambda place, saved: add_expert(place, "hub:nobody/nothing", "far"), "No model could be loaded"),
        (lambda place, saved: add_expert(place / "none", saved["en"], "en"), "There is no directory"),
        (lambda place, saved: remove_expert(place, "ru", rule="gate"), "fitted to all experts"),
        (lambda place, saved: remove_expert(place, "fr"), "no expert 'fr'. There are: ru, zh"),
        (lambda place, saved: remove_expert(saved["ru"], "ru"), "not a composition"),
        (lambda place, saved: reweight(place, {"fr": 1}), "no expert 'fr'"),
        (lambda place, saved: reweight(place, {"ru": -1}), "at least 0"),
        (lambda place, saved: reweight(place, {"ru": float("nan")}), "at least 0"),
        (lambda place, saved: reweight(place, {"ru": 0, "zh": 0}), "All weights are 0"),
        (lambda place, saved: set_rule(place, "median"), "no composition rule"),
        (lambda place, saved: set_rule(place, "gate"), "has to be fitted"),
        (lambda place, saved: load_model(place, rule="adapter"), "has to be fitted"),
        (lambda place, saved: compose_directories(saved, place.parent / "new", rule="gate"), "has to be fitted"),
        (lambda place, saved: fit_directory(place, {"ru": ["x"]}, "evidence"), "nothing to fit"),
        (lambda place, saved: fit_directory(place, {"ru": [""]}, "weighted"), "no text"),
        (lambda place, saved: load_model(saved["ru"], rule="mean"), "single gpt_neox model"),
    ],
)
def test_what_cannot_work_changes_nothing(saved, pair, change, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = content(pair)
    with pytest.raises(TreeringError, match=message):
        change(pair, saved)
    assert content(pair) == before
