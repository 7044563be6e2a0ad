from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.errors import TreeringError
from treering.growth import stacked
from treering.growth.study import Run, StudyRecipe, compare, runs


@pytest.fixture
def recipe(tokenizer, corpus, tmp_path):
    """A study small enough for a test, as plain values."""
    tokenizers.save(tokenizer, tmp_path / "tokenizer")
    return {
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": str(Path(corpus.train.cache_files[0]["filename"]).parent),
        "output": str(tmp_path / "study"),
        "backbone": {"preset": "tiny"},
        "plan": {"way": "stacked", "depth": 2, "width": 1},
        "training": {"tokens": 1024, "batch_tokens": 256, "evaluations": 1},
        "seeds": [0],
    }


def test_a_study_has_all_baselines_for_equal_tokens_and_equal_compute(recipe):
    made = runs(StudyRecipe.model_validate(recipe | {"seeds": [0, 1], "more": {"twice": "sliding-6"}}))
    names = list(dict.fromkeys(run.name for run in made))
    assert names == [
        *(f"{way}, {kind}" for way in ("grown", "monolithic") for kind in ("glyph", "code", "trainable")),
        "shallow, glyph",
        "twice",
        "grown, glyph, equal compute",
        "shallow, glyph, equal compute",
        "twice, equal compute",
    ]
    assert [run.seed for run in made[:2]] == [0, 1]
    tokens = {run.name: run.tokens for run in made}
    assert {tokens[name] for name in names[:8]} == {1024}
    assert tokens["shallow, glyph, equal compute"] > tokens["grown, glyph, equal compute"] > 1024
    assert tokens["twice, equal compute"] < 1024  # six blocks against two
    shallow = next(run for run in made if run.name == "shallow, glyph")
    assert [stage.new for stage in shallow.plan.stages] == [(1,)]


@pytest.mark.parametrize(
    ("plan", "blocks"),
    [
        ({"way": "turns", "depth": 6, "width": 2}, (1, 2)),
        ({"way": "turns", "depth": 6, "width": 3}, (1, 2, 3)),
        ("looped-6", (1, 2, 3)),  # four blocks without the head are more than three with one for 700 tokens
        ("monolithic-6", (1, 2, 3, 4, 5, 6)),
    ],
)
def test_the_shallow_model_is_the_deepest_of_the_same_active_budget(recipe, plan, blocks):
    made = runs(StudyRecipe.model_validate(recipe | {"plan": plan}))
    assert {run.plan.stages[0].new for run in made if run.name.startswith("shallow")} == {blocks}


def test_two_runs_of_one_name_are_refused(recipe):
    for name in ("shallow, glyph", "grown glyph"):
        with pytest.raises(TreeringError, match="Two runs of the study would be called"):
            runs(StudyRecipe.model_validate(recipe | {"more": {name: "sliding-6"}}))


def test_the_share_of_depths_gain(tmp_path):
    """Against the definition by hand, on results written for it."""
    values = {"shallow, glyph": [2.0, 2.2], "monolithic, glyph": [1.5, 1.7], "grown, glyph": [1.9, 2.1]}
    all_runs = []
    for name, bits in values.items():
        for seed, value in enumerate(bits):
            run = Run(name, "glyph", stacked(2), 10, seed)
            place = tmp_path / "runs" / run.directory
            place.mkdir(parents=True)
            stage = {"active": 5, "tokens": 10, "flops": 7.0, "seconds": 2.0, "prefix_seconds": 1.0}
            (place / "growth.json").write_text(json.dumps({"stages": [stage | {"validation_bits_per_byte": value}]}))
            (place / "abilities.json").write_text(
                json.dumps([{"measure": "bits per byte", "text": "ru", "value": value}, {"measure": "recall"}])
            )
            all_runs.append(run)
    found = {one.name: one for one in compare(tmp_path, all_runs)}
    assert [found[name].recovered for name in values] == [0.0, 1.0, 0.2]
    grown = found["grown, glyph"]
    assert (grown.bits_per_byte, grown.low, grown.high, grown.texts) == (2.0, 1.9, 2.1, {"ru": 2.0})
    assert (grown.seconds, grown.tokens, grown.flops, grown.active) == (3.0, 10, 7.0, 5)


@pytest.mark.slow
def test_the_command_runs_a_study_and_goes_on_with_one(recipe, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(recipe | {"equal_compute": False, "kinds": ["glyph", "trainable"]}))
    shown = CliRunner().invoke(app, ["study", "growth", str(path)], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    outcomes = {one["name"]: one for one in json.loads((tmp_path / "study" / "study.json").read_text())}
    assert outcomes["shallow, glyph"]["recovered"] == 0 and outcomes["monolithic, glyph"]["recovered"] == 1
    assert outcomes["grown, trainable"]["active"] > outcomes["grown, glyph"]["active"]
    assert (tmp_path / "study" / "study.png").stat().st_size > 10_000
    assert "grown, trainable" in shown.stdout
    place = tmp_path / "study" / "runs" / "grown-trainable-0" / "stages"
    tables = [_table(place / stage) for stage in "12"]
    start = _table(tmp_path / "study" / "runs" / "grown-glyph-0")
    assert tables[0].equal(tables[1]) and not tables[0].equal(start)  # trained in the first stage, then frozen
    path.write_text(path.read_text().replace("tokens: 1024", "tokens: 1536"))
    with pytest.raises(TreeringError, match="was made with another training than the study asks for"):
        CliRunner().invoke(app, ["study", "growth", str(path)], catch_exceptions=False)
    path.write_text(path.read_text().replace("tokens: 1536", "tokens: 1024"))
    record = tmp_path / "study" / "runs" / "grown-glyph-0" / "growth.json"
    older = json.loads(record.read_text())
    for stage in older["plan"]["stages"]:
        del stage["tied"]  # as a version without it left the run
    record.write_text(json.dumps(older))
    again = CliRunner().invoke(app, ["study", "growth", str(path)], catch_exceptions=False)
    assert "stage 1 of" not in again.stderr and again.stdout == shown.stdout


def _table(directory):
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return file.get_tensor("gpt_neox.embed_in.weight")
