"""What ``save_pretrained`` and ``from_pretrained`` are asked of any model, asked of a composition."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from treering.backbone import embedding
from treering.composition import ComposedModel, CompositionConfig, compose, load_model
from treering.composition import model as module
from treering.errors import TreeringError


@pytest.fixture(scope="module")
def experts(expert):
    return {"a": expert(1), "b": expert(2, 1, "llama")}


@pytest.fixture
def composed(experts):
    return compose(experts)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return torch.tensor([tokenizer("To open this dialog, choose")["input_ids"]])


def trainer(model, prompt, place, **options):
    rows = Dataset.from_list([{"input_ids": prompt[0], "labels": prompt[0]}] * 4)
    settings = TrainingArguments(
        place, max_steps=2, learning_rate=0.01, report_to=[], use_cpu=True, disable_tqdm=True, **options
    )
    return Trainer(model, settings, train_dataset=rows)


def test_the_substrate_stays_frozen(experts, composed, tmp_path):
    composed.save_pretrained(tmp_path / "saved")
    with torch.device("meta"):
        built = ComposedModel(composed.config)
    for model in (composed, load_model(tmp_path / "saved"), built):
        assert [p.requires_grad for p in model.substrates.parameters()] == [False]
        assert all(p.requires_grad for p in model.experts.parameters())
    assert not embedding(experts["a"]).weight.requires_grad


def test_trainer_trains_the_experts_alone_and_saves_what_loads(expert, prompt, tmp_path):
    model = compose({"a": expert(1), "b": expert(2, 1, "llama")})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = trainer(model, prompt, tmp_path / "run")
    training.train()
    training.save_model(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    for name, tensor in loaded.state_dict().items():
        assert tensor.equal(model.state_dict()[name])
        assert tensor.equal(before[name]) == name.startswith("substrates.")
    with torch.no_grad():
        assert loaded(prompt).logits.equal(model.eval()(prompt).logits)


def test_a_substrate_that_was_trained_all_the_same_is_not_saved(expert, prompt, tmp_path):
    model = compose({"a": expert(1), "b": expert(2, 1, "llama")}).requires_grad_(True)
    training = trainer(model, prompt, tmp_path / "run", save_strategy="no")
    training.train()
    with pytest.raises(TreeringError, match="is not what it was when the experts were joined"):
        training.save_model(tmp_path / "saved")


def test_a_state_that_is_given_is_what_is_saved(composed, prompt, tmp_path):
    state = {
        name: tensor.to(torch.bfloat16) if name.startswith("experts.a") else tensor / 2
        for name, tensor in composed.state_dict().items()
        if not name.startswith("substrates.")
    }
    state |= {name: tensor for name, tensor in composed.state_dict().items() if name.startswith("substrates.")}
    composed.save_pretrained(tmp_path, state_dict=state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in loaded.state_dict().items():
        assert tensor.equal(state[name].float())
    assert [record["config"]["dtype"] for record in loaded.config.experts] == ["bfloat16", "float32"]


def test_another_models_state_is_refused(composed, experts, tmp_path):
    state = composed.state_dict()
    lacking = {name: tensor for name, tensor in state.items() if "lm_head" not in name}
    for wrong, message in (
        (experts["a"].state_dict(), "lacks"),
        (lacking, "lacks 2 tensors, such as experts.a.lm_head.weight"),
        (state | {"more": torch.zeros(1)}, "has besides 1 tensors, such as more"),
        (state | {"experts.a.lm_head.weight": torch.zeros(1)}, "in another shape"),
    ):
        with pytest.raises(TreeringError, match=message):
            composed.save_pretrained(tmp_path / "out", state_dict=wrong)
    assert not (tmp_path / "out").exists()


def test_only_the_main_process_writes(composed, tmp_path):
    composed.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_shards_are_never_larger_than_allowed(composed, tmp_path):
    composed.save_pretrained(tmp_path / "roomy", max_shard_size="50GB")
    with pytest.raises(TreeringError, match=r"expert-a.safetensors would take .* more than max_shard_size='200KB'"):
        composed.save_pretrained(tmp_path / "out", max_shard_size="200KB")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wish", [{"variant": "fp16"}, {"distributed_checkpoint": True}, {"repo_id": "me/it"}])
def test_what_a_composition_cannot_do_is_said(composed, tmp_path, wish):
    with pytest.raises(TreeringError, match=f"cannot be saved with {next(iter(wish))}="):
        composed.save_pretrained(tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()


def test_what_is_written_is_uploaded(composed, tmp_path, monkeypatch):
    class Repository:
        repo_id = "me/joined"

    made, uploaded = {}, {}
    monkeypatch.setattr(
        module, "create_repo", lambda repo_id, **options: made.update(options, name=repo_id) or Repository
    )
    monkeypatch.setattr(
        ComposedModel,
        "_upload_modified_files",
        lambda self, directory, repo_id, before, **options: uploaded.update(options, to=repo_id, before=before),
    )
    composed.save_pretrained(tmp_path / "joined", push_to_hub=True, token="t", private=True, commit_message="New")
    assert made == {"name": "joined", "token": "t", "exist_ok": True, "private": True}
    assert uploaded == {"to": "me/joined", "before": {}, "token": "t", "commit_message": "New"}
    composed.save_pretrained(tmp_path / "joined", push_to_hub=True, repo_id="me/other")
    assert made["name"] == "me/other"
    assert "config.json" in uploaded["before"]


def test_a_model_without_numbers_is_made_and_loaded_but_not_saved(composed, tmp_path):
    composed.save_pretrained(tmp_path / "saved")
    with torch.device("meta"):
        empty = ComposedModel(composed.config)
    for model in (empty, AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map="meta")):
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert model.device.type == "meta"
        with pytest.raises(TreeringError, match="is on the meta device"):
            model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("rule", ["mean", "evidence", "gate", "adapter"])
def test_experts_and_fits_on_the_disk_are_fetched_when_needed(experts, prompt, tmp_path, rule):
    model = compose(experts, rule)
    model.save_pretrained(tmp_path / "saved")
    places = {"experts.a": "disk", "experts.b": "cpu", "substrates": "cpu", "fusion": "disk" if model.fusion else "cpu"}
    options = {"max_new_tokens": 8, "do_sample": False}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.experts["a"].lm_head.weight.device.type == "meta"
    assert loaded.device.type == "cpu"
    with torch.no_grad():
        assert loaded(prompt).logits.equal(model(prompt).logits)
    assert loaded.generate(prompt, **options).equal(model.generate(prompt, **options))
    loaded.save_pretrained(tmp_path / "again")
    for shard in (tmp_path / "saved").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()


def test_blocks_are_never_divided_between_devices(composed, prompt, tmp_path):
    composed.save_pretrained(tmp_path / "saved")
    size = sum(p.nbytes for p in composed.parameters())
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved",
        device_map="auto",
        max_memory={"cpu": int(0.7 * size)},
        offload_folder=tmp_path / "offloaded",
    )
    assert {"cpu", "disk"} == set(loaded.hf_device_map.values())
    for layer in loaded.experts["a"].gpt_neox.layers:
        assert len({p.device for p in layer.parameters()}) == 1
    with torch.no_grad():
        assert loaded(prompt).logits.equal(composed(prompt).logits)


def test_experts_have_the_attention_that_is_asked_for(experts, composed, prompt, tmp_path):
    composed.save_pretrained(tmp_path / "saved")

    def attentions(model):
        return [own.config._attn_implementation for _, own in model.named_experts()]

    assert attentions(composed) == ["sdpa", "sdpa"]
    eager = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert attentions(eager) == ["eager", "eager"]
    slow = copy.deepcopy(experts["a"])
    slow.set_attn_implementation("eager")
    assert attentions(compose({"a": slow, "b": experts["b"]})) == ["eager", "sdpa"]
    composed.set_attn_implementation("eager")
    assert attentions(composed) == ["eager", "eager"]
    with torch.no_grad():
        torch.testing.assert_close(eager(prompt).logits, compose(experts)(prompt).logits)


def test_outputs_are_what_was_asked_for(composed, prompt):
    with torch.no_grad():
        output = composed(prompt, labels=prompt)
        loss, logits = composed(prompt, labels=prompt, return_dict=False)
        assert loss.equal(output.loss)
        assert logits.equal(output.logits)
        for asked in ("output_hidden_states", "output_attentions"):
            with pytest.raises(TreeringError, match=f"no layers of its own that {asked} could give"):
                composed(prompt, **{asked: True})
        with pytest.raises(TreeringError, match="output_hidden_states"):
            composed.generate(prompt, output_hidden_states=True, return_dict_in_generate=True, max_new_tokens=2)


def test_there_is_one_default_rule(composed):
    assert CompositionConfig().rule == composed.config.rule == str(composed.rule)
