from __future__ import annotations

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose, load_model
from treering.errors import TreeringError
from treering.evaluation import document_losses
from treering.growth import study
from treering.growth.plan import steps
from treering.recipe import check_recipe
from treering.reproduction import ReproductionRecipe, expected, experts, reproduce, rows
from treering.reproduction.reproduction import jumps
from treering.reproduction.rows import (
    COPIED,
    MONOLITHIC,
    SHALLOW,
    STACKED,
    STACKED_CODE,
    STACKED_COMPUTE,
    STACKED_LORA,
)

SMALL = {
    "specialists": {name: {"path": f"embedded:{name}", "limit": 60} for name in ("ru", "zh")},
    "shared": {"en": {"path": "embedded:en", "limit": 60}},
    "vocab_size": 1024,
    "backbone": {"preset": "tiny", "d_model": 32, "context": 64},
    "depth": 2,
    "width": 1,
    "training": {"tokens": 1024, "batch_tokens": 128, "evaluations": 1},
    "rates": [1e-2],
    "seeds": [0],
    "validation": 0.1,
    "calibration": 0.1,
    "documents": 4,
}


@pytest.fixture
def recipe(tmp_path):
    """A reproduction small enough for a test, as plain values."""
    return SMALL | {"output": str(tmp_path / "out")}


def checked(values, *assignments):
    return check_recipe(values, ReproductionRecipe, "recipe.yaml", assignments)


def test_the_paper_s_way_and_its_baselines_hold_one_budget(recipe):
    whole = checked(recipe, "depth=6", "width=2", "training.tokens=1_000_000")
    costs = {cost.row.name: cost for cost in expected(whole)}
    assert list(costs) == [row.name for row in rows(whole)] + [f"expert {name}" for name in ("ru", "zh", "en")]
    shallow = costs[SHALLOW]
    for name in (STACKED, STACKED_CODE, STACKED_LORA, STACKED_COMPUTE, COPIED):
        assert costs[name].active <= shallow.active < costs[MONOLITHIC].active, name
    assert costs["monolithic, trainable"].active == costs[MONOLITHIC].active + 1024 * 32
    assert costs[STACKED_COMPUTE].flops == pytest.approx(costs[MONOLITHIC].flops, rel=1e-3)
    tokens = {name: cost.row.tokens for name, cost in costs.items() if name != STACKED_COMPUTE}
    assert set(tokens.values()) == {1_000_000} and costs[STACKED_COMPUTE].row.tokens > 1_000_000


def test_lora_phases_follow_every_stage_but_the_first(recipe):
    (row,) = (row for row in rows(checked(recipe, "depth=6", "width=2")) if row.name == STACKED_LORA)
    told = [(step.depth, step.stage.new, bool(step.stage.lora)) for step in steps(row.plan)]
    assert told == [
        (2, (1, 2), False),
        (4, (3, 4), False),
        (4, (), True),
        (6, (5, 6), False),
        (6, (), True),
    ]
    assert sum(stage.share for stage in row.plan.stages) == pytest.approx(1)


def test_specialists_share_no_page_of_the_shared_text(recipe):
    reads = {
        member.name: {text: owner for text, (_, owner) in member.reads.items()} for member in experts(checked(recipe))
    }
    assert reads == {"ru": {"ru": 1, "en": 1}, "zh": {"zh": 1, "en": 2}, "en": {"en": 1}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"epochs": 1}}, "training: .*say in tokens how much each row reads"),
        ({"depth": 3, "width": 2}, "depth must be two or more stages of width 2 blocks"),
        ({"depth": 2, "width": 2}, "depth must be two or more stages"),
        ({"shared": {"ru": "embedded:ru"}}, "ru is the name of a specialist's text and of the shared one"),
        ({"specialists": {"ru": "embedded:ru"}}, "specialists: .*at least 2"),
        ({"shared": {"en": "embedded:en", "fr": "x.txt"}}, "shared: .*at most 1"),
        ({"backbone": {"preset": "tiny", "layers": 3}}, "backbone.layers is not said here"),
        ({"specialists": {"../ru": "embedded:ru", "zh": "embedded:zh"}}, "specialists"),
    ],
)
def test_faults_of_a_recipe_are_told(recipe, changes, said):
    with pytest.raises(TreeringError, match=said):
        checked(recipe | changes)


def test_a_jump_is_told_from_the_loss_at_a_stage_s_begin():
    history = [
        {"loss": 1.0, "bits_per_byte": 3.0, "tokens": 100, "stage": 1},
        {"eval_loss": 1.0, "eval_bits_per_byte": 9.0, "tokens": 200, "stage": 1},
        {"loss": 1.0, "bits_per_byte": 2.0, "tokens": 200, "stage": 1},
        {"loss": 1.0, "bits_per_byte": 2.8, "tokens": 250, "stage": 2},
        {"loss": 1.0, "bits_per_byte": 2.1, "tokens": 300, "stage": 2},
        {"loss": 1.0, "bits_per_byte": 1.9, "tokens": 350, "stage": 2},
        {"loss": 1.0, "bits_per_byte": 1.8, "tokens": 400, "stage": 2},
        {"loss": 1.0, "bits_per_byte": 1.9, "tokens": 500, "stage": 3},
    ]
    first, second = (asdict(jump) for jump in jumps("row", 7, history))
    assert first == {"row": "row", "seed": 7, "stage": 2, "before": 2.0, "after": 2.8, "back": 0.75}
    assert (second["stage"], second["before"], second["after"], second["back"]) == (3, 1.8, 1.9, None)


def test_a_dry_run_says_what_it_will_cost_and_makes_nothing(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    shown = CliRunner().invoke(app, ["study", "reproduction", str(path), "--dry-run"], catch_exceptions=False)
    assert shown.exit_code == 0 and len(re.findall(r"^ .*0\.00", shown.stdout, re.M)) >= 13, shown.stdout
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped_and_its_numbers_are_those_of_the_models(
    recipe, tmp_path, monkeypatch
):
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe))
    command, whole = ["study", "reproduction", str(path)], study.grow_recipe
    made = []

    def stops(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(whole(*arguments))

    monkeypatch.setattr(study, "grow_recipe", stops)
    with pytest.raises(KeyboardInterrupt):
        reproduce(checked(recipe), Console(quiet=True))
    first = {run: run.stat().st_mtime_ns for run in out.glob("runs/*/*/model.safetensors")}
    assert len(first) == 2 and not (out / "measured").exists()

    monkeypatch.setattr(study, "grow_recipe", whole)
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert {run: run.stat().st_mtime_ns for run in first} == first
    found = json.loads((out / "reproduction.json").read_text())
    verdicts = {one["claim"]["words"]: one["verdict"] for one in found["findings"]}
    assert (
        verdicts["an expert joins without any change to the others, and leaves without a trace, to the byte"] == "holds"
    )
    assert set(verdicts.values()) <= {"holds", "does not hold", "not told apart", "cannot be judged"}
    assert (out / "reproduction.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert page.count('class="takeaway"') == 1 and f"Of {len(found['findings'])} claims and controls" in page
    assert all(f'<th scope="row">{n}. ' in page for n in range(1, len(found["findings"]) + 1))

    # What is told are the plain losses of the models that lie there, and of the mean of logits by hand.
    told = {one["name"]: one["values"] for one in found["reached"]}
    places = {name: next((out / "runs" / f"expert-{name}").iterdir()) for name in ("ru", "zh")}
    texts = study.held_out_texts([out / "corpora" / "expert-ru"], "validation")["ru"][:4]
    tokenizer = tokenizers.load(out / "tokenizer")
    models = {name: load_model(place) for name, place in places.items()}
    for name, model in models.items():
        own = document_losses(model, tokenizer, texts).bits_per_byte
        assert told[f"expert {name}"]["ru"] == [pytest.approx(own, abs=1e-4)]
    mean = document_losses(compose(models, "mean"), tokenizer, texts).bits_per_byte
    assert told["joined by mean, 2"]["ru"] == [pytest.approx(mean, abs=1e-4)]
    assert told["best expert"]["ru"] == [min(told[f"expert {name}"]["ru"][0] for name in ("ru", "zh"))]
    assert np.isfinite([values for one in told.values() for values in one.values()]).all()

    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "stage 1 of" not in again.stderr and again.stdout == shown.stdout
    assert json.loads((out / "reproduction.json").read_text()) == found
    with pytest.raises(TreeringError, match="holds runs with another depth than the recipe's"):
        reproduce(checked(recipe | {"depth": 3}), Console(quiet=True))
