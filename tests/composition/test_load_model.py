from __future__ import annotations

import builtins
import copy
import json
import shutil
import struct

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from treering import tokenizer as tokenizers
from treering.composition import ComposedModel, add_expert, list_experts, load_model, reweight
from treering.composition.loading import read_composition
from treering.errors import TreeringError


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def expert_copy(saved, tmp_path):
    """``expert_copy(name)``: an expert's directory that may be spoiled."""

    def make(name: str):
        return shutil.copytree(saved[name], tmp_path / f"{name}-copy")

    return make


def as_snapshot(directory, root):
    """A directory as the hub's cache has it: ``models--lab--it/snapshots/REVISION``, all of whose files are links."""
    repository, revision = root / "models--lab--it", "0" * 40
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_loads_and_joins_but_is_not_rewritten(saved, pair, tmp_path):
    expected = load_model(pair)(torch.arange(5, 15)[None]).logits
    snapshot = as_snapshot(pair, tmp_path / "hub")
    assert load_model(snapshot)(torch.arange(5, 15)[None]).logits.equal(expected)
    with pytest.raises(TreeringError, match="is a link, which Treering does not follow"):
        reweight(snapshot, {"ru": 2})
    (saved["en"] / "README.md").write_text("---\nlicense: mit\n---\n")
    joining = as_snapshot(saved["en"], tmp_path / "other")
    (saved["en"] / "README.md").unlink()
    add_expert(pair, joining, "en")
    assert list_experts(pair)[2]["licence"] == "mit"


def test_what_an_expert_tells_of_itself_is_no_link_to_other_files(pair, expert_copy, tmp_path):
    place, secret = expert_copy("en"), tmp_path / "secret.json"
    secret.write_text(json.dumps({"origin": {}, "token": "swordfish"}))
    (place / "training.json").unlink()
    (place / "training.json").symlink_to(secret)
    with pytest.raises(TreeringError, match=r"training\.json is a link"):
        add_expert(pair, place, "en")


def test_a_hub_name_is_read_from_the_cache(pair, tmp_path, monkeypatch):
    as_snapshot(pair, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert isinstance(load_model("hub:lab/it"), ComposedModel)
    (shard,) = (tmp_path / "hub").rglob("snapshots/*/expert-zh.safetensors")
    flip(shard.resolve(), -1)
    with pytest.raises(TreeringError, match="does not hold the expert zh"):
        load_model("hub:lab/it")


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).write_text("ran")
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeForCausalLM(LlamaForCausalLM):
    config_class = StrangeConfig
"""


def test_code_that_comes_with_a_model_runs_only_with_the_flag(expert_copy, tmp_path, monkeypatch):
    place, marker = expert_copy("en"), tmp_path / "marker"
    (place / "strange.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeForCausalLM"}
    edit(place / "config.json", lambda values: values.update(model_type="strange", auto_map=auto_map))
    edit(
        place / "tokenizer_config.json",
        lambda values: values.update(tokenizer_class="Strange", auto_map={"AutoTokenizer": ["strange.S", "strange.S"]}),
    )
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # as `yes |` answers
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for load in (load_model, tokenizers.load):
        with pytest.raises(TreeringError, match="--trust-remote-code"):
            load(place)
    assert not marker.exists()
    assert type(load_model(place, trust_remote_code=True)).__name__ == "StrangeForCausalLM"
    assert marker.read_text() == "ran"


def test_compositions_need_no_flag_although_they_carry_a_loader(pair, monkeypatch):
    (pair / "modeling_treering.py").write_text("raise SystemExit('it ran')")
    assert isinstance(AutoModelForCausalLM.from_pretrained(pair, trust_remote_code=False), ComposedModel)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    assert isinstance(load_model(pair), ComposedModel)


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_kernels_from_the_hub_are_code_too(expert_copy, field):
    place = expert_copy("en")
    edit(place / "config.json", lambda values: values.update({field: "lab/kernel"}))
    with pytest.raises(TreeringError, match="code from elsewhere"):
        load_model(place)


def test_weights_are_never_pickles(expert_copy):
    place = expert_copy("en")
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(TreeringError, match="pickles can run code"):
        load_model(place)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**6), ("num_hidden_layers", 9_999), ("vocab_size", 10**9), ("intermediate_size", 10**9)],
)
def test_a_model_is_no_larger_than_its_files(expert_copy, pair, field, value):
    place = expert_copy("en")
    edit(place / "config.json", lambda values: values.update({field: value}))
    edit(pair / "config.json", lambda values: values["experts"][0]["config"].update({field: value}))
    for spoilt in (place, pair):
        with pytest.raises(TreeringError, match=r"larger model than its files|more than 10,000 layers"):
            load_model(spoilt)


def test_a_header_is_no_longer_than_its_file(pair, expert_copy):
    place = expert_copy("en")
    for file in (pair / "expert-zh.safetensors", place / "model.safetensors"):
        file.write_bytes(struct.pack("<Q", 2 * 2**30) + b"{}")
    for read in (lambda: read_composition(pair), lambda: load_model(pair), lambda: load_model(place)):
        with pytest.raises(TreeringError, match="damaged or cut short"):
            read()


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ([2], [0, 8]), "b": ([2], [0, 8])},
        {"a": ([2], [8, 16])},
        {"a": ([2**40], [0, 8])},
        {"a": ([2**62, 8], [0, 8])},
        {"a": ([2], [0, 8]), "\x1b[2J": ([2], [8, 16])},
        {"a": ([1] * 50, [0, 4])},
    ],
)
def test_tensors_lie_in_a_file_one_after_the_other(expert_copy, tensors):
    place = expert_copy("en")
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": at} for name, (shape, at) in tensors.items()}
    text, size = json.dumps(header).encode(), max(at[1] for _, at in tensors.values())
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(TreeringError, match="damaged or cut short") as error:
        load_model(place)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["weight_map"].update({"experts.zh.x": "expert-zh.safetensors"}),
        lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], "../elsewhere.safetensors")),
        lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], 5)),
        lambda index: index.update(weight_map=[]),
        lambda index: index["weight_map"].popitem(),
    ],
)
def test_an_index_names_the_shards_of_the_composition_and_no_others(pair, change):
    edit(pair / "model.safetensors.index.json", change)
    for read in (read_composition, load_model):
        with pytest.raises(TreeringError, match=r"index\.json"):
            read(pair)


def test_weights_beside_the_shards_are_not_taken_for_them(pair, saved):
    shutil.copy(saved["en"] / "model.safetensors", pair)
    with pytest.raises(TreeringError, match="besides the shards"):
        load_model(pair)


def test_an_index_of_a_single_model_names_files_beside_it(expert_copy, tmp_path):
    place = expert_copy("en")
    tensors = load_file(place / "model.safetensors")
    save_file(tensors, tmp_path / "elsewhere.safetensors", metadata={"format": "pt"})
    (place / "model.safetensors").unlink()
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "../elsewhere.safetensors")}))
    with pytest.raises(TreeringError, match="which is no safetensors file beside it"):
        load_model(place)


def test_an_adapter_is_told_with_what_to_do(saved, pair, expert_copy, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(load_model(saved["ru"])), LoraConfig(target_modules=["dense"]))
    adapted.peft_config["default"].base_model_name_or_path = "/far/away/base"
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizers.save(tokenizers.load(saved["ru"]), tmp_path / "adapter")
    with pytest.raises(TreeringError, match=r"is a PEFT adapter \(LORA\) of the model /far/away/base") as error:
        add_expert(pair, tmp_path / "adapter", "adapter")
    assert "treering model merge" in str(error.value) and "another machine" in str(error.value)
    whole = expert_copy("ru")  # transformers would load the adapter beside a model into it
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", whole)
    with pytest.raises(TreeringError, match="is a PEFT adapter"):
        load_model(whole)


def test_a_directory_half_replaced_is_put_back_by_whoever_reads(pair):
    for read in (load_model, list_experts, tokenizers.load):
        pair.rename(pair.with_name(".pair.abcd1234.replaced"))
        read(pair)
        assert [path.name for path in pair.parent.iterdir()] == ["pair"]
