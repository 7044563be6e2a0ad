"""The command line as a person meets it in a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from treering import __version__
from treering import tokenizer as tokenizers
from treering.cli import main
from treering.cli.console import caution, progress


@pytest.fixture
def treering(monkeypatch, capsys, tmp_path):
    """``treering("data info x")``: exit status, standard output and standard error, in an empty directory."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["treering", *(words[0].split() if len(words) == 1 else words)])
        with monkeypatch.context() as shell, pytest.raises(SystemExit) as stopped:
            shell.setattr("os.environ", os.environ.copy())
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize(
    "command",
    [
        "train recipe.yaml",
        "grow recipe.yaml",
        "grow branch --model m --data d -o o",
        "study growth recipe.yaml",
        "study continual recipe.yaml",
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
