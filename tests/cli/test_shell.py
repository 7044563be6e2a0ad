"""The command line as a person meets it in a shell."""

from __future__ import annotations

import signal

import pytest

from treering.cli import main


@pytest.fixture
def treering(monkeypatch, capsys, tmp_path):
    """``treering("data info x")``: exit status, standard output and standard error, in an empty directory."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["treering", *(words[0].split() if len(words) == 1 else words)])
        with pytest.raises(SystemExit) as stopped:
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
