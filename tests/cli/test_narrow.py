"""What people see at 80 columns, and without colours."""

from __future__ import annotations

import io
import re
import signal

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.backbone import PRESETS, count_parameters, preset
from treering.cli import main
from treering.cli.console import print_fitting
from treering.cli.main import app
from treering.composition import compose_directories, list_experts
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
    said = {"1,234,000/5,678,000", "validation", f"{6.321987 / 0.693147 / 2.25:.3f}", "tokens/s", "left"}
    assert said <= words
    assert ("(6.322 nats/token)" in lines[0]) == ("MiB" in words) == (width == 160)


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_says_of_which_text_its_bits_are(width):
    display = Display(256, 2.25, Console(width=width, file=io.StringIO()))
    status = display._status({"loss": 6.3219, "bits_per_byte": 4.0538, "tokens_per_second": 123_456.0})
    assert status.startswith("training ") and "4.054 bits/byte  123,456 tokens/s" in status
    assert ("MiB" in status) == ("loss 6.322" in status) == (width == 160)
    assert len(status) < width - len("12,340/56,780 steps  left 0:00:00")


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


@pytest.fixture
def narrow(monkeypatch):
    """``narrow(ARGUMENT…)``: what a command shows on a terminal of 80 columns."""

    def shown(*arguments):
        console = Console(width=80, file=io.StringIO(), record=True)
        monkeypatch.setattr("treering.cli.console.results", lambda: console)
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(r"\S…", text), text  # rich's mark where it cuts; an interval has room about its own
        return text

    return shown


def test_presets_are_whole(narrow):
    assert re.search(r"total +231,168 *\n *frozen +65,536 *\n *active +165,632", narrow("model", "info", "tiny"))
    table = narrow("model", "info")
    for name in PRESETS:
        count = count_parameters(preset(name))
        assert re.search(rf"^ *{name} .* {count.total:,} .*{count.active:,}", table, re.M), table


def test_experts_are_whole(narrow, composition):
    listed = list_experts(composition)
    for text in (narrow("compose", "list", composition), narrow("model", "info", composition)):
        for record in listed:
            assert re.search(rf"expert +{record['name']}\b", text)
            assert re.search(rf"parameters +{record['parameters']:,}\b", text)
            assert record["fingerprint"][:12] in text


def test_measures_are_whole(narrow, composition, tmp_path):
    for name in ("first", "second", "third"):
        (tmp_path / f"{name}.txt").write_text("To open this, choose Open.\n\nTo close it, choose Close.")
    texts = [f"--text={name}-of-a-long-name={tmp_path / name}.txt" for name in ("first", "second", "third")]
    table = narrow("eval", "bits", f"a-long-name={composition}", *texts)
    assert "a-long-name (evidence:switch=0.01)" in table
    own = ["--own=left=first-of-a-long-name", "--own=right=second-of-a-long-name"]
    text = narrow("eval", "forgetting", composition, *texts, *own, "--rule", "evidence:switch=0.01", "--rule", "mean")
    assert re.search(r"joined \(evidence:switch=0\.01\)\s*$", text, re.M)
    text = narrow("compose", "kinds", composition, *texts, *own)
    assert re.search(r"left +\d+%", text) and "Found, not told: left and right are" in text.replace("\n", " ")


def test_a_substrate_has_its_fingerprint_on_a_line_of_its_own(narrow, substrate, tokenizer, tmp_path):
    substrate.save(tmp_path, tokenizer)
    shown = narrow("substrate", "info", tmp_path)
    assert substrate.fingerprint in map(str.strip, shown.splitlines())
    assert f"{substrate.matrix.numel():,} (frozen)" in shown
