"""The command line as a person meets it in a shell."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest
from typer.main import get_command

from treering import __version__
from treering import tokenizer as tokenizers
from treering.backbone import PRESETS
from treering.cli.completion import NAMES, offered
from treering.cli.console import caution, progress
from treering.cli.main import app
from treering.composition import DEFAULT_RULE, RULES
from treering.corpus.preparation import CorpusRecipe
from treering.evaluation.overlap import OverlapRecipe
from treering.growth import PLANS, GrowthRecipe
from treering.growth.continual import ContinualRecipe
from treering.growth.study import StudyRecipe
from treering.reproduction import ReproductionRecipe
from treering.training import ExpertRecipe


@pytest.mark.parametrize(
    "command",
    [
        "train recipe.yaml",
        "grow recipe.yaml",
        "grow branch --model m --data d -o o",
        "study growth recipe.yaml",
        "study continual recipe.yaml",
        "study composition recipe.yaml",
        "study reproduction recipe.yaml",
        "data prepare --recipe recipe.yaml",
        "data prepare x.txt -t t -o o",
    ],
)
def test_every_recipe_takes_set(treering, tmp_path, command):
    (tmp_path / "recipe.yaml").write_text("output: o\n")
    status, _, said = treering(f"{command} --set training.seed=1 --set colour.sky=blue")
    assert status == 2 and "--set: colour: there is no such field" in said, said


def test_version(treering):
    assert treering("--version") == (0, f"treering {__version__}\n", "")


@pytest.mark.parametrize("hushed", [True, False])
def test_quiet_keeps_progress_back_but_neither_results_nor_warnings_nor_errors(
    treering, tmp_path, tokenizer, capsys, hushed
):
    tokenizers.save(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("".join(f"Passage {n} of {n * n}.\n\n" for n in range(300)))
    options = "-q " if hushed else ""
    prepare = "data prepare text.txt -t tokenizer --document line --block-size 8 -o corpus"
    status, out, err = treering(options + prepare)
    assert status == 0 and "train:" in out and (err == "" or not hushed)
    status, out, err = treering(options + "data info nowhere")
    assert status == 2 and out == "" and "error: " in err and "nowhere" in err
    caution("mind the \x1b[1mgap")
    progress().print("meanwhile")
    said = capsys.readouterr().err
    assert "warning: mind the \\x1b[1mgap" in said and ("meanwhile" in said) == (not hushed)


def test_what_libraries_log_is_for_verbose(monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    script = (
        "import logging, sys, warnings; from treering.cli.console import talk; talk(False, sys.argv[1] == '-v');"
        "from transformers.utils.logging import get_logger; get_logger('transformers.some').info('inform');"
        "get_logger('transformers.some').warning('warn'); warnings.warn('mind'); logging.getLogger('peft').info('peft')"
    )
    told, silent = (
        subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=True).stderr
        for option in ("-v", "")
    )
    assert silent == ""
    assert all(word in told for word in ("inform", "warn", "mind", "peft: peft")), told


def commands(command, path=()):
    """All commands below one, with the words that call them."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_every_command_has_an_example_of_itself():
    found = dict(commands(get_command(app)))
    assert len(found) > 25
    for path, command in found.items():
        _, _, example = (command.help or "").partition("Example: ")
        words = ("compose",) if path == ("compose", "join") else path
        assert " ".join(("treering", *words)) in example, path


def test_every_group_has_an_example_of_one_of_its_commands():
    groups = {name: inner for name, inner in get_command(app).commands.items() if hasattr(inner, "commands")}
    assert len(groups) == 7
    for name, group in groups.items():
        _, _, example = (group.help or "").partition("Example: treering ")
        first, second = example.split()[:2]
        assert first == name and (name == "compose" or second in group.commands), name


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (("train",), ExpertRecipe),
        (("grow",), GrowthRecipe),
        (("study", "growth"), StudyRecipe),
        (("study", "continual"), ContinualRecipe),
        (("study", "composition"), OverlapRecipe),
        (("study", "reproduction"), ReproductionRecipe),
        (("data", "prepare"), CorpusRecipe),
    ],
)
def test_a_field_that_set_names_is_one_of_the_recipe(words, recipe):
    (option,) = (o for o in dict(commands(get_command(app)))[words].params if "--set" in o.opts)
    for field, part in re.findall(r"(\w+)(?:\.(\w+))?=", option.help):
        annotation = recipe.model_fields[field].annotation
        assert not part or part.isdigit() or part in annotation.model_fields, (field, part)


def test_a_default_is_shown_as_it_is_given():
    options = {o.name: o for o in dict(commands(get_command(app)))[("compose", "join")].params}
    assert options["rule"].default == DEFAULT_RULE
    for path, command in commands(get_command(app)):
        shown = [o.show_default for o in command.params if isinstance(getattr(o, "show_default", None), str)]
        assert shown == [], path  # which would stand in brackets of its own


def test_every_command_that_prints_a_table_prints_json():
    without = {" ".join(p) for p, c in commands(get_command(app)) if not any("--json" in o.opts for o in c.params)}
    compose = {f"compose {verb}" for verb in ("join", "add", "remove", "cut", "reweight", "rule", "fit")}
    others = {"init", "substrate build", "train", "import", "generate", "serve", "card", "lm-eval"}
    models = {"model average", "model merge"}
    pages = {"report", "substrate map"}
    assert without == others | models | compose | pages


def test_the_shell_offers_what_there_is():
    assert set(NAMES["rule"]) == set(RULES) and set(NAMES["plan"]) == set(PLANS)
    assert set(NAMES["preset"]) == set(PRESETS)
    assert set(NAMES["fitted rule"]) == {"weighted"} | {n for n, r in RULES.items() if "hidden" in r.needs}
    assert offered("rule")("ev") == ["evidence"] and offered("plan")("no-such") == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("treering generate joined --rule ga", "gate"),
        ("treering grow copi", "copied-6"),
        ("treering model info abs", "abs-bvv-1"),
    ],
)
def test_tab_completes(typed, expected):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_TREERING_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'treering'; from treering.cli import main; main()"],
        env=os.environ | words,
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout.split(), done


def test_generate_and_explain_read_what_comes_in(treering, joined, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon\n")))
    status, out, _ = treering("generate", str(joined), "-", "--tokens", "2", "--temperature", "0")
    assert status == 0 and out.startswith("Once upon") and not out.startswith("Once upon\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon\n")))
    status, out, _ = treering("explain", str(joined), "-", "--json")
    assert status == 0 and "".join(row["text"] for row in json.loads(out)) == "Once upon"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    status, _, err = treering("generate", str(joined), "-")
    assert status == 2 and "What comes in is not UTF-8 text (byte 3)" in err


def test_model_info_tells_of_models_and_compositions(treering, joined, expert, substrate):
    own = sum(parameter.numel() for parameter in expert(0, 1).parameters())
    shared = substrate.matrix.numel()
    known = json.loads(treering("model", "info", str(joined.parent / "a"), "--json")[1])
    assert (known["kind"], known["family"], known["layers"], known["width"]) == ("model", "gpt_neox", 1, 64)
    assert (known["parameters"], known["substrate"]) == (own, substrate.fingerprint)
    known = json.loads(treering("model", "info", str(joined), "--json")[1])
    assert (known["kind"], known["rule"]) == ("composition", "evidence:switch=0.01")
    assert known["parameters"] == 2 * own - shared
    assert [record["name"] for record in known["experts"]] == ["a", "b"]
    status, out, _ = treering("model", "info", str(joined))
    assert status == 0 and "composition of 2 experts" in out and f"{2 * own - shared:,}" in out
    status, _, err = treering("model", "info", str(joined.parent))
    assert status == 2 and "config.json" in err
    assert "There is no preset 'huge', and no directory" in treering("model info huge")[2]
