"""Where a run reports to, and that it goes on in the same log."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from treering.errors import TreeringError
from treering.growth import Plan, Stage, grow, seedling
from treering.recipe import check_recipe
from treering.training import Backbone, Training
from treering.training import trackers as module


def scalars(directory):
    """By name, steps and values, as TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_one_name_or_a_list():
    def made(value):
        return check_recipe({"tokens": 1, "report_to": value}, Training, "test").report_to

    assert made("wandb") == ("wandb",) and made(["trackio", "tensorboard"]) == ("trackio", "tensorboard")
    with pytest.raises(TreeringError, match=r"report_to.*'tensorboard', 'trackio' or 'wandb'"):
        made("mlflow")


def test_the_switch_of_earlier_versions_says_what_to_write():
    assert check_recipe({"tokens": 1, "tensorboard": False}, Training, "test") == Training(tokens=1)
    with pytest.raises(TreeringError, match="tensorboard: true is said as report_to: tensorboard now"):
        check_recipe({"tokens": 1, "tensorboard": True}, Training, "test")


def test_what_is_not_installed_is_said_before_anything_starts(run, model, settings, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(TreeringError, match=r"needs the package wandb: pip install 'treering\[wandb\]'"):
        run(model, tmp_path / "out", settings.model_copy(update={"report_to": ("wandb",)}))
    assert not list(tmp_path.iterdir())


def test_tensorboard_goes_on_in_the_same_log(kill_at, run, model, settings, tmp_path, monkeypatch):
    settings = settings.model_copy(update={"report_to": ("tensorboard",)})
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 5)
        run(model, tmp_path / "out", settings)
    model.load_state_dict(initial)
    result = run(model, tmp_path / "out", settings)
    shown = scalars(tmp_path / "out.tensorboard")
    losses = [(entry["step"], entry["loss"]) for entry in result.history if "loss" in entry]
    assert [step for step, _ in shown["train/loss"]] == [step for step, _ in losses] == list(range(1, 9))
    assert [value for _, value in shown["train/loss"]] == pytest.approx([value for _, value in losses])
    bits = [(e["step"], e["eval_bits_per_byte"]) for e in result.history if "eval_loss" in e]
    assert shown["eval/bits_per_byte"] == [(step, pytest.approx(value)) for step, value in bits]


def test_a_growth_has_a_log_of_each_stage_that_stays(substrate, tokenizer, corpus, settings, tmp_path):
    torch.manual_seed(0)
    stages = (Stage(new="1", start="random", share=0.5), Stage(new="2", share=0.5))
    settings = settings.model_copy(update={"report_to": ("tensorboard",)})
    model = seedling(substrate, tokenizer, Backbone(preset="tiny"))
    grow(model, tokenizer, corpus, tmp_path / "out", Plan(stages=stages), settings)
    for stage in ("stage-1", "stage-2"):
        assert [step for step, _ in scalars(tmp_path / "out.tensorboard" / stage)["train/loss"]] == [1, 2, 3, 4]


class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)


class Tracker(SimpleNamespace):
    """Stands for trackio: notes what it is asked."""

    def __init__(self):
        super().__init__(
            __version__="1.0",
            begun=[],
            logged=[],
            context_vars=SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None)),
            config=Config(),
            finish=lambda: None,
        )

    def init(self, **given):
        self.begun.append(given)

    def log(self, entry):
        self.logged.append(entry)


def test_trackio_goes_on_with_the_run_of_the_same_name(kill_at, run, model, settings, tmp_path, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    monkeypatch.setattr("treering.training.run.require_trackers", lambda names: None)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: True)
    settings = settings.model_copy(update={"report_to": ("trackio",)})
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 5)
        run(model, tmp_path / "out", settings)
    model.load_state_dict(initial)
    run(model, tmp_path / "out", settings)
    first, second = tracker.begun
    assert first["project"] == "treering" and first["name"].startswith("out-")
    assert (second["name"], second["resume"]) == (first["name"], "allow")
    assert any("train/bits_per_byte" in entry for entry in tracker.logged)
    model.load_state_dict(initial)
    run(model, tmp_path / "other", settings)
    assert tracker.begun[2]["name"] != first["name"].replace("out", "other")
