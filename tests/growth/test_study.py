from __future__ import annotations

import json
import math
import re
from io import StringIO

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import PRESETS, gpt_neox
from treering.cli.main import app
from treering.corpus import Corpus, Source, prepare
from treering.errors import TreeringError
from treering.evaluation import document_losses
from treering.growth import copied, monolithic
from treering.growth import study as module
from treering.growth.cost import count, shape_of
from treering.growth.outcome import outcomes
from treering.growth.plan import steps
from treering.growth.study import Row, Search, StudyRecipe, rows, search
from treering.training import Training


@pytest.fixture(scope="module")
def data(tokenizer, tmp_path_factory):
    """Russian pages, some of them set apart for calibration."""
    place = tmp_path_factory.mktemp("study") / "data"
    prepare([Source(path="embedded:ru", limit=150)], tokenizer, place, block_size=64, validation=0.1, calibration=0.1)
    return place


@pytest.fixture
def recipe(tokenizer, data, tmp_path):
    """A study small enough for a test, as plain values; nothing is searched."""
    tokenizers.save(tokenizer, tmp_path / "tokenizer")
    return {
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": str(data),
        "output": str(tmp_path / "study"),
        "backbone": {"preset": "tiny"},
        "plan": {"way": "stacked", "depth": 2, "width": 1},
        "training": {"tokens": 1024, "batch_tokens": 256, "evaluations": 1},
        "search": {"learning_rate": [3e-3], "warmup": [0.1], "schedule": ["cosine"]},
        "seeds": [0],
    }


def test_a_study_has_all_baselines_for_equal_tokens_and_equal_compute(recipe):
    made = rows(StudyRecipe.model_validate(recipe | {"more": {"twice": "sliding-6"}}))
    names = [row.name for row in made]
    assert names == [
        *(f"{way}, {kind}" for way in ("grown", "monolithic") for kind in ("glyph", "code", "trainable")),
        "shallow, glyph",
        "twice",
        "grown, glyph, equal compute",
        "shallow, glyph, equal compute",
    ]
    tokens = {row.name: row.tokens for row in made}
    assert {tokens[name] for name in names[:8]} == {1024}
    assert tokens["shallow, glyph, equal compute"] > tokens["grown, glyph, equal compute"] > 1024
    shallow = next(row for row in made if row.name == "shallow, glyph")
    assert [stage.new for stage in shallow.plan.stages] == [(1,)]


@pytest.mark.parametrize(
    ("plan", "blocks"),
    [
        ({"way": "turns", "depth": 6, "width": 2}, (1, 2)),
        ({"way": "turns", "depth": 6, "width": 3}, (1, 2, 3)),
        ("looped-6", (1, 2, 3)),  # four blocks without the head are more than three with one for 700 tokens
    ],
)
def test_the_shallow_model_is_the_deepest_of_the_same_active_budget(recipe, plan, blocks):
    made = rows(StudyRecipe.model_validate(recipe | {"plan": plan}))
    assert {row.plan.stages[0].new for row in made if row.name.startswith("shallow")} == {blocks}


def test_there_is_no_shallow_model_of_a_budget_of_all_blocks(recipe):
    made = rows(StudyRecipe.model_validate(recipe | {"plan": "copied-12", "more": {}}))
    assert [row.name for row in made if row.kind == "glyph"] == [
        "grown, glyph",
        "monolithic, glyph",
        "grown, glyph, equal compute",
    ]


def test_two_rows_of_one_name_are_refused(recipe):
    for name in ("shallow, glyph", "grown glyph"):
        with pytest.raises(TreeringError, match="Two runs of the study would be called"):
            rows(StudyRecipe.model_validate(recipe | {"more": {name: "sliding-6"}}))


def searched(recipe, plan, bits, monkeypatch, **values):
    """What a row chooses where its bits follow from its settings, and the settings that it tried."""
    tried = []

    def run(recipe, row, settings, console):
        tried.append((settings.learning_rate, settings.warmup, settings.schedule))
        return bits(settings)

    monkeypatch.setattr(module, "run", run)
    whole = StudyRecipe.model_validate(recipe | {"search": values})
    best = search(whole, Row("row", "glyph", plan, 1024), None)
    return (best.learning_rate, best.warmup, best.schedule), tried


def test_every_row_searches_one_thing_after_the_other(recipe, monkeypatch):
    def bits(settings: Training) -> float:
        return abs(settings.learning_rate - 8e-3) + abs(settings.warmup - 0.5) + 0.01 * (settings.schedule == "cosine")

    values = {"learning_rate": [4e-3, 8e-3, 1.6e-2], "warmup": [0.3, 0.5], "schedule": ["cosine", "linear"]}
    best, tried = searched(recipe, monolithic(2), bits, monkeypatch, **values)
    assert best == (8e-3, 0.5, "linear")
    assert list(dict.fromkeys(tried)) == [
        (4e-3, 0.3, "cosine"),
        (8e-3, 0.3, "cosine"),
        (1.6e-2, 0.3, "cosine"),
        (8e-3, 0.5, "cosine"),
        (8e-3, 0.5, "linear"),
    ]


@pytest.mark.parametrize("optimum", [1e-3, 6.4e-2])
def test_the_search_goes_on_where_the_best_rate_is_the_last(recipe, monkeypatch, optimum):
    rates = Search().learning_rate
    best, tried = searched(
        recipe, monolithic(2), lambda s: abs(s.learning_rate - optimum), monkeypatch, warmup=[0.3], schedule=["cosine"]
    )
    assert best[0] == optimum
    beyond = {rate for rate, _, _ in tried} - set(rates)
    assert beyond == ({2e-3, 1e-3, 5e-4} if optimum < rates[0] else {3.2e-2, 6.4e-2, 1.28e-1})


def test_what_a_plan_says_itself_is_not_searched(recipe, monkeypatch):
    _, tried = searched(
        recipe,
        copied(4, 2),
        lambda s: 0.0,
        monkeypatch,
        learning_rate=[3e-3],
        warmup=[0.1],
        schedule=["cosine", "linear"],
    )
    assert {schedule for _, _, schedule in tried} == {"cosine"}


def test_a_trial_that_diverges_is_infinitely_bad_and_not_tried_again(recipe, tmp_path, monkeypatch):
    values = {"learning_rate": [3e-3, 1e6], "warmup": [0.1], "schedule": ["cosine"]}
    whole, row = StudyRecipe.model_validate(recipe | {"search": values}), Row("row", "glyph", monolithic(1), 1024)
    tokenizer = tokenizers.load(recipe["tokenizer"])
    place = tmp_path / "study/substrates/glyph"
    place.mkdir(parents=True)
    substrates.build(tokenizer, whole.backbone.shape().d_model).save(place, tokenizer)
    monkeypatch.setattr(module, "rates", lambda values, tried: values)
    said = StringIO()
    assert search(whole, row, Console(file=said, width=200)).learning_rate == 3e-3
    assert re.search(r"^  Training diverged: .* at step \d+: it counts as infinitely bad$", said.getvalue(), re.M)
    left = {path.name for path in (tmp_path / "study/runs/row").iterdir()}
    assert left == {"0.003-0.1-cosine-0", "1e+06-0.1-cosine-0.diverged.json"}
    monkeypatch.setattr(module, "grow_recipe", None)
    assert search(whole, row, Console(quiet=True)).learning_rate == 3e-3
    worse = whole.training.model_copy(update={"learning_rate": 1e6, "warmup": 0.1, "tokens": 1536})
    with pytest.raises(TreeringError, match=r"diverged\.json was made with another training than the study asks for"):
        module.run(whole, row, worse, Console(quiet=True))


def test_a_search_ends_where_all_that_it_tried_diverged(recipe, monkeypatch):
    values = {"warmup": [0.3, 0.5], "schedule": ["cosine"]}
    with pytest.raises(TreeringError, match="Whatever the row row tried diverged"):
        searched(recipe, monolithic(2), lambda settings: math.inf, monkeypatch, **values)
    best, _ = searched(
        recipe,
        monolithic(2),
        lambda s: 1.0 if (s.learning_rate, s.warmup) == (4e-3, 0.5) else math.inf,
        monkeypatch,
        **values,
    )
    assert best == (4e-3, 0.5, "cosine")


def test_a_chosen_row_that_diverges_with_another_seed_is_told(recipe, monkeypatch):
    whole = StudyRecipe.model_validate(recipe | {"seeds": [0, 1]})
    monkeypatch.setattr(module, "run", lambda recipe, row, settings, console: math.inf if settings.seed else 1.0)
    with pytest.raises(
        TreeringError, match=r"grown, glyph diverged with seed 1, at a rate \(0\.003\) chosen with seed 0"
    ):
        module.study(whole, Console(quiet=True))


def test_the_share_of_depths_gain(recipe):
    """Against the definition by hand, on results written for it."""
    values = {"shallow, glyph": [2.0, 2.2], "monolithic, glyph": [1.5, 1.7], "grown, glyph": [1.9, 2.1]}
    shape = shape_of(gpt_neox(PRESETS["tiny"]), 64)
    placed = steps(copied(6, 4))
    costs, settings = count(placed, [3, 7], shape), Training(tokens=10, learning_rate=0.5)
    measured = {
        name: [
            {
                "seconds": 2.0 + 2 * seed,
                "abilities": [
                    {"measure": "bits per byte", "text": "ru", "value": value - 0.1},
                    {"measure": "bits per byte", "text": "en", "value": value + 0.1},
                    {"measure": "recall", "text": "ru", "value": 9.0},
                ],
            }
            for seed, value in enumerate(bits)
        ]
        for name, bits in values.items()
    }
    found = {one.name: one for one in outcomes(dict.fromkeys(values, (costs, settings)), measured)}
    assert [found[name].recovered for name in values] == [0.0, 1.0, 0.2]
    grown = found["grown, glyph"]
    assert (grown.bits_per_byte, grown.low, grown.high, grown.texts) == (2.0, 1.9, 2.1, {"ru": 1.9, "en": 2.1})
    assert (grown.seconds, grown.tokens, grown.seeds, grown.learning_rate) == (3.0, 10, 2, 0.5)
    assert grown.flops == sum(cost.flops for cost in costs)


def test_a_corpus_without_pages_set_apart_is_refused(recipe, corpus, tokenizer, tmp_path):
    prepare([Source(path="embedded:ru", limit=60)], tokenizer, tmp_path / "data", block_size=64, validation=0.1)
    with pytest.raises(TreeringError, match="sets no documents apart"):
        module.study(StudyRecipe.model_validate(recipe | {"data": str(tmp_path / "data")}))


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
    page = (tmp_path / "study" / "report.html").read_text()
    assert "grown, trainable</text>" in page and "stage 2</text>" in page
    made = tmp_path / "study" / "runs" / "grown-trainable" / "0.003-0.1-cosine-0"
    tables = [_table(made / "stages" / stage) for stage in "12"]
    start = _table(tmp_path / "study" / "runs" / "grown-glyph" / "0.003-0.1-cosine-0")
    assert tables[0].equal(tables[1]) and not tables[0].equal(start)  # trained in the first stage, then frozen
    path.write_text(path.read_text().replace("tokens: 1024", "tokens: 1536"))
    with pytest.raises(TreeringError, match="was made with another training than the study asks for"):
        CliRunner().invoke(app, ["study", "growth", str(path)], catch_exceptions=False)
    path.write_text(path.read_text().replace("tokens: 1536", "tokens: 1024"))
    again = CliRunner().invoke(app, ["study", "growth", str(path)], catch_exceptions=False)
    assert "stage 1 of" not in again.stderr and again.stdout == shown.stdout


def test_held_out_pages_are_read_when_all_is_chosen(recipe, data, tmp_path, monkeypatch):
    """In a run only the pages set apart are seen; what is reported is plain bits per byte of the held-out ones."""
    whole = StudyRecipe.model_validate(
        recipe | {"equal_compute": False, "kinds": ["glyph"], "search": {"learning_rate": [1e-3, 3e-3]} | ONE}
    )
    ready, read = list[int](), module.held_out_texts

    def made() -> int:
        return len(list((tmp_path / "study" / "runs").glob("*/*/growth.json")))

    def note(*arguments):
        ready.append(made())
        return read(*arguments)

    monkeypatch.setattr(module, "held_out_texts", note)
    found = {one.name: one for one in module.study(whole, Console(quiet=True))}
    assert ready == [made()] * 3 and made() > 6
    one = found["shallow, glyph"]
    place = tmp_path / "study" / "runs" / "shallow-glyph"
    bits = {}
    for run in place.iterdir():
        model, own = AutoModelForCausalLM.from_pretrained(run), tokenizers.load(run)
        apart, held = (
            [row["text"] for row in getattr(Corpus.load(data), split)] for split in ("calibration", "validation")
        )
        said = json.loads((run / "growth.json").read_text())["stages"][-1]["validation_bits_per_byte"]
        assert said == pytest.approx(document_losses(model, own, apart).score().bits_per_byte, rel=0.1)
        bits[run.name] = [said, document_losses(model, own, held).score().bits_per_byte]
    chosen = f"{one.learning_rate:g}-0.1-cosine-0"
    assert one.bits_per_byte == pytest.approx(bits[chosen][1], abs=1e-4)
    assert bits[chosen][0] == min(apart for apart, _ in bits.values())


ONE = {"warmup": [0.1], "schedule": ["cosine"]}


def _table(directory):
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return file.get_tensor("gpt_neox.embed_in.weight")
