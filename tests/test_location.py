"""What a name means: a directory here, or with ``hub:`` a repository, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from treering.composition import load_model
from treering.errors import TreeringError
from treering.location import locate
from treering.tokenizer import load


def test_a_directory_is_itself_and_the_hub_is_asked_by_its_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ru").mkdir(parents=True)
    assert locate("runs/ru") == "runs/ru"
    assert locate(tmp_path / "runs") == str(tmp_path / "runs")
    assert locate("hub:runs/ru") == "runs/ru"


@pytest.mark.parametrize("load_it", [locate, load, load_model])
def test_a_mistyped_path_is_never_taken_for_a_repository(tmp_path, monkeypatch, load_it):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TreeringError, match=r"^There is no directory runs/nope\. .*hub is written hub:runs/nope\.$"):
        load_it("runs/nope")
    with pytest.raises(TreeringError, match=r"no directory nope\. .*hub:NAME\.$"):
        load_it("nope")


def test_a_file_is_told_from_its_directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TreeringError, match="is a file; give the directory that it lies in"):
        locate(tmp_path / "config.json")


@pytest.mark.parametrize(("options", "told"), [((), 1), (("-q",), 0)])
def test_who_waits_for_the_hub_is_told_so_once(options, told):
    command = [sys.executable, "-m", "treering", *options, "generate", "hub:nobody/nothing", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert done.stderr.count("asking the hub for nobody/nothing\n") == told
