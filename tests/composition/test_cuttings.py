"""Branches without their trunk: handed over in little, whole again beside their base, refused beside another."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from treering import tokenizer as tokenizers
from treering.backbone import blocks
from treering.composition import add_expert, compose_directories, cut, load_model, parts
from treering.composition.bases import trunk_name
from treering.errors import TreeringError


def small(seed, layers, vocabulary, tied=True):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=128, **shape, **ids)).eval()


def branch(base, seed, head=False):
    """A block and a norm of its own on a model, and perhaps a head, with the note that growing leaves."""
    depth = base.config.num_hidden_layers
    grown = small(seed, depth + 1, base.config.vocab_size, tied=base.config.tie_word_embeddings and not head)
    own = {name: tensor for name, tensor in base.state_dict().items() if "model.norm" not in name}
    grown.load_state_dict({name: t for name, t in own.items() if not (head and "lm_head" in name)}, strict=False)
    grown.model.norm.weight.data = 1 + 0.1 * torch.randn(32)
    names = parts.path(base.config, base.state_dict())
    noted = {"trunk": trunk_name(names["blocks"]), "embedding": names["embedding"], "head": names["head"]}
    grown.config.treering_trunk = {"base": "hub:some/base", "blocks": depth, **noted}
    return grown


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def places(request, tokenizer, tmp_path_factory):
    """A base, a branch, one with a head of its own, and a branch of the branch, whole and cut."""
    folder = tmp_path_factory.mktemp("cuttings")
    base = small(0, 2, len(tokenizer), request.param)
    models = {"base": base, "ru": branch(base, 1), "zh": branch(base, 2, head=True)}
    models["law"] = branch(models["ru"], 3)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizers.save(tokenizer, folder / name)
        if name != "base":
            cut(folder / name, folder / f"{name}-cut")
    return folder


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_what_is_handed_over_is_what_the_base_does_not_have(places):
    block = [name for name, _ in blocks(load_model(places / "ru"))[0].named_parameters()]
    for name, depth, head in (("ru", 2, []), ("zh", 2, ["lm_head.weight"]), ("law", 3, [])):
        own = load_file(places / f"{name}-cut" / "branch.safetensors")
        assert sorted(own) == sorted([f"model.layers.{depth}.{n}" for n in block] + ["model.norm.weight", *head])
        whole = load_file(places / name / "model.safetensors")
        assert all(tensor.equal(whole[key]) for key, tensor in own.items())


def test_beside_its_base_it_is_the_whole_branch_to_the_byte(places, tmp_path):
    names = {"base": "base", "ru": "ru", "zh": "zh", "law": "law"}
    compose_directories({name: places / place for name, place in names.items()}, tmp_path / "whole")
    shuffled = {"law": "law-cut", "ru": "ru-cut", "base": "base", "zh": "zh-cut"}
    with pytest.raises(TreeringError, match="needs the model that it was grown on"):
        compose_directories({name: places / place for name, place in shuffled.items()}, tmp_path / "early")
    cuttings = {name: places / (place if name == "base" else f"{place}-cut") for name, place in names.items()}
    compose_directories(cuttings, tmp_path / "cut")
    assert {n: b for n, b in files(tmp_path / "cut").items() if n != "config.json"} == {
        n: b for n, b in files(tmp_path / "whole").items() if n != "config.json"
    }


def test_it_joins_a_composition_that_has_its_base(places, tmp_path):
    for kind, suffix in (("whole", ""), ("cut", "-cut")):
        compose_directories({"base": places / "base", "zh": places / "zh"}, tmp_path / kind)
        before = {path.name: path.stat().st_ino for path in (tmp_path / kind).glob("trunk-*")}
        add_expert(tmp_path / kind, places / f"ru{suffix}", "ru")
        add_expert(tmp_path / kind, places / f"law{suffix}", "law")
        after = {path.name: path.stat().st_ino for path in (tmp_path / kind).glob("trunk-*")}
        assert before.items() <= after.items()
    assert load_model(tmp_path / "cut").state_dict().keys() == load_model(tmp_path / "whole").state_dict().keys()
    shards = {n: b for n, b in files(tmp_path / "whole").items() if n.endswith(".safetensors")}
    assert shards == {n: b for n, b in files(tmp_path / "cut").items() if n.endswith(".safetensors")}


def test_cut_again_it_stays_as_it_is_and_another_is_refused(places, tmp_path):
    names = cut(places / "ru", tmp_path / "out")
    before = files(tmp_path / "out")
    assert cut(places / "ru", tmp_path / "out") == names and files(tmp_path / "out") == before
    with pytest.raises(TreeringError, match="already exists"):
        cut(places / "zh", tmp_path / "out")


def test_alone_it_says_which_base_it_needs(places):
    noted = json.loads((places / "ru-cut" / "config.json").read_text())["treering_trunk"]
    with pytest.raises(TreeringError, match="some/base, whose lowest 2 blocks are " + noted["trunk"]):
        load_model(places / "ru-cut")


@pytest.mark.parametrize("changed", ["embedding", 0, 1])
def test_another_base_is_refused_by_the_first_block_that_differs(places, tmp_path, tokenizer, changed):
    other = copy.deepcopy(load_model(places / "base"))
    place = other.model.embed_tokens if changed == "embedding" else other.model.layers[changed].mlp.up_proj
    place.weight.data.view(torch.int32)[1, 1] ^= 1
    other.save_pretrained(tmp_path / "other")
    tokenizers.save(tokenizer, tmp_path / "other")
    with pytest.raises(TreeringError, match="other is another model") as error:
        compose_directories({"other": tmp_path / "other", "ru": places / "ru-cut"}, tmp_path / "joined")
    assert ("in the embedding" if changed == "embedding" else f"in block {changed + 1}.") in str(error.value)
    assert not (tmp_path / "joined").exists()


def test_what_was_changed_or_is_damaged_is_refused(places, tmp_path):
    for number, change in enumerate(
        (
            lambda d: (d / "branch.safetensors").write_bytes(b"no"),
            lambda d: (d / "branch.json").write_text('{"embedding": 3}'),
            lambda d: (d / "branch.safetensors").unlink(),
            lambda d: flip(d / "branch.safetensors"),
            lambda d: drop(d / "branch.safetensors"),
            lambda d: (d / "config.json").unlink(),
        )
    ):
        place = tmp_path / f"ru{number}"
        place.mkdir()
        for name, content in files(places / "ru-cut").items():
            (place / name).write_bytes(content)
        change(place)
        with pytest.raises(TreeringError):
            compose_directories({"base": places / "base", "ru": place}, tmp_path / "joined")
        assert not (tmp_path / "joined").exists()


def flip(path):
    tensors = load_file(path)
    tensors["model.norm.weight"].view(torch.int32)[3] ^= 1
    save_file(tensors, path)


def drop(path):
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


def test_only_a_branch_can_be_cut(places, tmp_path, tokenizer):
    with pytest.raises(TreeringError, match="does not say what it was grown on"):
        cut(places / "base", tmp_path / "out")
    trained = load_model(places / "ru")
    trained.model.layers[0].mlp.up_proj.weight.data += 1
    trained.save_pretrained(tmp_path / "trained")
    tokenizers.save(tokenizer, tmp_path / "trained")
    with pytest.raises(TreeringError, match="were trained since"):
        cut(tmp_path / "trained", tmp_path / "out")
    assert not (tmp_path / "out").exists()
