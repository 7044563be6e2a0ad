from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from treering.cli.main import app
from treering.errors import TreeringError
from treering.substrate import load

runner = CliRunner()


@pytest.fixture(scope="module")
def built(literal, tmp_path_factory):
    root = tmp_path_factory.mktemp("substrates")
    literal.save_pretrained(root / "tokenizer")
    arguments = [
        "substrate",
        "build",
        root / "tokenizer",
        "--d-model",
        128,
        "--cell",
        16,
        "-o",
        root / "made",
    ]
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert load(root / "made").fingerprint in result.output
    return root


def run(*arguments):
    return runner.invoke(app, ["substrate", *map(str, arguments)])


def command(*arguments):
    """The real command, with what it does about errors."""
    code = "from treering.cli import main; main()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", code, "substrate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


def test_info_and_verify(built):
    made = load(built / "made")
    shown = json.loads(run("info", built / "made", "--json").output)
    assert shown["fingerprint"] == made.fingerprint and shown["recipe"]["kind"] == "glyph" and shown["frozen"]
    assert "tokens told apart by a mark" in run("info", built / "made").output
    result = run("verify", built / "made")
    assert result.exit_code == 0 and made.fingerprint in result.output
    assert json.loads(run("verify", built / "made", "--json").stdout)["ok"]


def test_sheet(built):
    sheet = built / "sheet.png"
    assert run("info", built / "made", "--sheet", sheet).exit_code == 0
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    assert isinstance(run("info", built / "made", "--sheet", sheet).exception, TreeringError)
    assert isinstance(run("info", built / "made", "--sheet", built / "sheet.txt").exception, TreeringError)


@pytest.mark.parametrize("kind", ["code", "random", "trainable"])
def test_other_kinds(built, kind):
    result = run("build", built / "tokenizer", "--d-model", 32, "--kind", kind, "-o", built / kind)
    assert result.exit_code == 0 and load(built / kind).recipe.kind == kind
    assert run("verify", built / kind).exit_code == 0


def test_errors_are_one_message_and_code_2(built, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep me")
    result = command("build", built / "tokenizer", "--d-model", 32, "-o", taken)
    assert result.returncode == 2 and "already exists" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in taken.iterdir()] == ["precious.txt"]

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (built / "made").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "substrate.safetensors").write_bytes((broken / "substrate.safetensors").read_bytes()[:1000])
    result = command("verify", broken)
    assert result.returncode == 2 and "cut short" in result.stderr and "Traceback" not in result.stderr


def test_a_failed_build_leaves_nothing(built, tmp_path):
    result = run("build", built / "tokenizer", "--d-model", 3, "-o", tmp_path / "new")
    assert isinstance(result.exception, TreeringError)
    result = run("build", tmp_path / "nowhere", "--d-model", 32, "-o", tmp_path / "new")
    assert isinstance(result.exception, TreeringError)
    assert not any(tmp_path.iterdir())
