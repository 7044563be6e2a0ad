from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

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
