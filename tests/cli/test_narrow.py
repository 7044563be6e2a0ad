"""What people see at 80 columns, and without colours."""

from __future__ import annotations

import io
import re
import signal

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from treering import tokenizer as tokenizers
from treering.cli import main
from treering.cli.console import print_fitting
from treering.composition import compose_directories
from treering.growth import PLANS
from treering.growth.cost import Shape, as_brief_table, as_table, count
from treering.growth.plan import steps
from treering.growth.recipe import as_plan
from treering.training.progress import Display

LARGE = Shape(
    embedding=500_000_000, block=70_000_000, linear=(("a", 4096, 12_288),), met=4096 * 12_288, norm=8192,
    head=5_000_000, width=4096, positions=512,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(PLANS.keys() - {"branch"}))
def test_stages_of_a_plan_fit_80_columns(name):
    placed = steps(as_plan(PLANS[name]))
    costs = count(placed, [1_234_567_890] * len(placed), LARGE)
    shown = {}
    for width in (80, 200):
        console = Console(width=width, file=io.StringIO(), record=True)
        print_fitting(console, as_table(costs), as_brief_table(costs))
        shown[width] = console.export_text()
    assert max(map(len, shown[80].splitlines())) <= 80
    assert shown[80].count("1.23G") == len(placed) and "…" not in shown[80]
    assert shown[200].count("1,234,567,890") == len(placed)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_number_of_a_validation_is_broken(width, tmp_path):
    console = Console(width=width, file=io.StringIO(), record=True)
    state = TrainerState(global_step=1_234_000, max_steps=5_678_000, is_world_process_zero=True)
    state.log_history = [{"eval_loss": 6.321987}]
    with Display(256, 2.25, console) as display:
        arguments, control = TrainingArguments(output_dir=str(tmp_path)), TrainerControl()
        display.on_train_begin(arguments, state, control)
        display.on_log(arguments, state, control)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    words = set(re.findall(r"\S+", "\n".join(lines)))
    assert {"1,234,000/5,678,000", f"{6.321987 / 0.693147 / 2.25:.3f}", "tokens/s", "MiB", "left"} <= words
    assert ("(6.322 nats/token)" in lines[0]) == (width == 160)


@pytest.fixture(scope="module")
def composition(tokenizer, expert, tmp_path_factory):
    place = tmp_path_factory.mktemp("narrow")
    for seed, name in enumerate(("left", "right")):
        expert(seed, 1).save_pretrained(place / name)
        tokenizers.save(tokenizer, place / name)
    compose_directories({name: place / name for name in ("left", "right")}, place / "joined")
    return place / "joined"


@pytest.mark.parametrize(
    ("environment", "says"), [({}, True), ({"FORCE_COLOR": "1"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True)]
)
def test_without_colours_explain_says_who_spoke_where(composition, monkeypatch, capsys, environment, says):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["treering", "explain", str(composition), "To open this, choose Open."])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().out
    assert not stopped.value.code and ("knew it" in shown) == says
    if says:
        told = shown.partition("passage")[2].partition("joined by")[0]
        runs = re.findall(r"^\s*(left|right|–)\s\s+(.*?)\s*$", told, re.M)
        assert "".join("".join(text.split()) for _, text in runs) == "Toopenthis,chooseOpen."
        assert {name for name, _ in runs} & {"left", "right"}
