from __future__ import annotations

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

from treering.composition import average, compose, load_model
from treering.corpus import Source, load_manifest, prepare
from treering.errors import TreeringError
from treering.training import Backbone, ExpertRecipe, train_expert
from treering.training import run as run_module


@pytest.fixture
def recipe(tmp_path, settings, substrate, tokenizer):
    """A recipe whose corpus was read from an absolute path of this machine."""
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    rows = (json.dumps({"id": str(n), "text": f"{n} слово " * 40}) for n in range(150))
    (tmp_path / "words.jsonl").write_text("\n".join(rows))
    source = Source(path=str(tmp_path / "words.jsonl"))
    prepare([source], tokenizer, tmp_path / "data", block_size=64, calibration=0.05)
    return ExpertRecipe(
        substrate=str(tmp_path / "substrate"),
        data=str(tmp_path / "data"),
        output=str(tmp_path / "expert"),
        backbone=Backbone(preset="tiny"),
        training=settings,
    )


def quietly(recipe):
    return train_expert(recipe, Console(file=io.StringIO()))


def test_an_expert_names_its_data_and_no_directory_of_the_machine(recipe, tmp_path):
    quietly(recipe)
    origin = json.loads((tmp_path / "expert" / "training.json").read_text())["origin"]
    assert origin["data"] == json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert origin["data"]["sources"][0]["source"]["path"] == "words.jsonl"
    assert origin["data"]["calibration"]["documents"] > 0
    assert origin["sources"] == ["words"]
    for path in (tmp_path / "expert").glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_a_substrate_that_is_not_there_is_told_as_such(recipe, tmp_path):
    with pytest.raises(TreeringError, match=r"no substrate at .*nope; `treering substrate build` makes one"):
        quietly(recipe.model_copy(update={"substrate": str(tmp_path / "nope")}))
    with pytest.raises(TreeringError, match="is not a substrate"):
        quietly(recipe.model_copy(update={"substrate": str(tmp_path / "data")}))


def test_an_interrupted_expert_goes_on_with_the_same_data_only(recipe, tmp_path, monkeypatch, tokenizer):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "export", die)
        quietly(recipe)
    prepare([tmp_path / "words.jsonl"], tokenizer, tmp_path / "other", block_size=64)
    with pytest.raises(TreeringError, match="unfinished run of another recipe"):
        quietly(recipe.model_copy(update={"data": str(tmp_path / "other")}))
    console = Console(file=io.StringIO())
    train_expert(recipe, console)
    assert "going on from step 8" in console.file.getvalue()
    manifest = load_manifest(tmp_path / "data").model_dump(mode="json")
    assert json.loads((tmp_path / "expert" / "training.json").read_text())["origin"]["data"] == manifest


@pytest.fixture
def common(recipe, tmp_path):
    """A recipe that goes on from an expert which is there."""
    quietly(recipe)
    changes = {"start": str(tmp_path / "expert"), "output": str(tmp_path / "gone-on")}
    return ExpertRecipe.model_validate(recipe.model_dump(exclude={"backbone"}) | changes)


def test_an_expert_goes_on_from_one_that_exists(common, tmp_path):
    before = load_file(tmp_path / "expert" / "model.safetensors")
    first = json.loads((tmp_path / "expert" / "history.json").read_text())
    told = Console(file=io.StringIO())
    train_expert(common, told)
    assert "begins with nothing" not in told.file.getvalue()
    after = load_file(tmp_path / "gone-on" / "model.safetensors")
    steps = json.loads((tmp_path / "gone-on" / "history.json").read_text())
    assert next(row["loss"] for row in steps if "loss" in row) < next(row["loss"] for row in first if "loss" in row) - 1
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == before.keys() - {"gpt_neox.embed_in.weight"}
    record = json.loads((tmp_path / "gone-on" / "training.json").read_text())
    assert record["origin"]["start"] == "expert"
    assert str(tmp_path) not in json.dumps(record)
    assert "went on from `expert`" in (tmp_path / "gone-on" / "README.md").read_text()
    joined = compose({name: load_model(tmp_path / name) for name in ("expert", "gone-on")})
    assert len(joined.substrates) == 1


def test_the_mean_of_two_that_went_on_from_one_may_be_gone_on_from(common, recipe, tmp_path):
    quietly(common)
    train_expert(common.model_copy(update={"output": str(tmp_path / "other"), "training": recipe.training}))
    average({name: tmp_path / name for name in ("gone-on", "other")}, tmp_path / "mean")
    quietly(common.model_copy(update={"start": str(tmp_path / "mean"), "output": str(tmp_path / "further")}))
    record = json.loads((tmp_path / "further" / "training.json").read_text())
    assert record["origin"]["start"] == "mean"
    with pytest.raises(TreeringError, match="gone-on and further went on from different models"):
        average({name: tmp_path / name for name in ("gone-on", "further")}, tmp_path / "no")
    with pytest.raises(TreeringError, match="expert went on from no other model"):
        average({name: tmp_path / name for name in ("gone-on", "expert")}, tmp_path / "no")


def test_what_an_expert_began_as_may_not_change_while_its_run_is_stopped(common, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "export", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        quietly(common)
    model = load_model(tmp_path / "expert")
    with torch.no_grad():
        model.get_output_embeddings().weight[0] += 1
    model.save_pretrained(tmp_path / "expert")
    with pytest.raises(TreeringError, match="another"):
        quietly(common)


def test_a_start_must_be_an_expert_of_this_substrate_and_backbone(common, recipe, tmp_path, substrate, tokenizer):
    def told(**changes):
        with pytest.raises(TreeringError) as error:
            quietly(ExpertRecipe.model_validate(common.model_dump(exclude={"backbone"}) | changes))
        return str(error.value)

    assert "num_hidden_layers 2, not 3" in told(backbone={"preset": "tiny", "layers": 3})
    assert "There is no directory" in told(start=str(tmp_path / "nothing"))
    model = load_model(tmp_path / "expert")
    compose({"a": model, "b": load_model(tmp_path / "expert")}).save_pretrained(tmp_path / "joined")
    assert "is a composition, of a, b" in told(start=str(tmp_path / "joined"))
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[5] += 1
    model.save_pretrained(tmp_path / "changed")
    assert "was changed, or rounded" in told(start=str(tmp_path / "changed"))
    model.config.treering["fingerprint"] = "0" * 64
    model.save_pretrained(tmp_path / "other")
    assert "stands on another substrate" in told(start=str(tmp_path / "other"))
    del model.config.treering
    model.save_pretrained(tmp_path / "stranger")
    assert "stands on no substrate" in told(start=str(tmp_path / "stranger"))


@pytest.fixture
def taught(recipe, tmp_path):
    """A recipe of an expert that a composition teaches which takes each token for its neighbour."""
    quietly(recipe)
    model = load_model(tmp_path / "expert")
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.copy_(head.weight.roll(1, 0))
    joined = compose({"a": model, "b": model})
    joined.save_pretrained(tmp_path / "joined")
    for file in (tmp_path / "expert").glob("tokenizer*"):
        (tmp_path / "joined" / file.name).write_bytes(file.read_bytes())
    changes = {"teacher": str(tmp_path / "joined"), "teacher_share": 0.75, "output": str(tmp_path / "pupil")}
    return recipe.model_copy(update=changes)


def test_a_pupil_comes_nearer_to_its_teacher_and_says_who_taught_it(taught, tokenizer, tmp_path):
    quietly(taught)
    ids = tokenizer("7 слово " * 9, return_tensors="pt").input_ids
    said = {name: load_model(tmp_path / name)(ids).logits.detach() for name in ("joined", "expert", "pupil")}
    target = said["joined"].softmax(-1)
    apart = {name: float(F.kl_div(own.log_softmax(-1), target, reduction="sum")) for name, own in said.items()}
    assert apart["pupil"] < 0.7 * apart["expert"]
    record = json.loads((tmp_path / "pupil" / "training.json").read_text())
    assert {name: record["origin"]["teacher"][name] for name in ("name", "share")} == {"name": "joined", "share": 0.75}
    assert str(tmp_path) not in json.dumps(record)
    told = (tmp_path / "pupil" / "README.md").read_text()
    assert "what `joined` says of this text (75% of the loss)" in told
    assert set(load_file(tmp_path / "pupil" / "model.safetensors")) == set(
        load_file(tmp_path / "expert" / "model.safetensors")
    )
    again = Console(file=io.StringIO())
    train_expert(taught, again)
    assert "pupil: complete" in " ".join(again.file.getvalue().split())


def test_a_stopped_pupil_goes_on_with_the_same_teacher_only(taught, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "export", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        quietly(taught)
    for other in ({"teacher_share": 0.5}, {"teacher": str(tmp_path / "expert")}, {"teacher": None}):
        with pytest.raises(TreeringError, match="unfinished run of another recipe"):
            quietly(taught.model_copy(update={"teacher_share": None} | other))
    quietly(taught)


def test_a_pupil_that_was_interrupted_learns_the_same(taught, tmp_path, monkeypatch, kill_at):
    training = taught.training.model_copy(update={"checkpoint_steps": 2})
    taught = taught.model_copy(update={"training": training})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 3)
        quietly(taught)
    quietly(taught)
    quietly(taught.model_copy(update={"output": str(tmp_path / "whole")}))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("pupil", "whole")]
    assert weights[0] == weights[1]


def test_a_teacher_must_read_what_its_pupil_reads(taught, recipe, tmp_path, tokenizer):
    def told(**changes):
        with pytest.raises(TreeringError) as error:
            quietly(taught.model_copy(update=changes))
        return str(error.value)

    assert "There is no directory" in told(teacher=str(tmp_path / "nothing"))
    model = load_model(tmp_path / "expert")
    model.config.max_position_embeddings = 32
    model.save_pretrained(tmp_path / "short")
    for file in (tmp_path / "expert").glob("tokenizer*"):
        (tmp_path / "short" / file.name).write_bytes(file.read_bytes())
    assert "reads at most 32 tokens at once, and the corpus is packed in blocks of 64" in told(
        teacher=str(tmp_path / "short")
    )
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    other.save_pretrained(tmp_path / "short")
    del model.config.treering
    model.save_pretrained(tmp_path / "short")
    assert "another tokenizer than the substrate" in told(teacher=str(tmp_path / "short"))
    with pytest.raises(ValidationError, match="no teacher"):
        ExpertRecipe.model_validate(recipe.model_dump() | {"teacher_share": 0.5})
