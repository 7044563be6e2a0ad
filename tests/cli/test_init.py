from __future__ import annotations

import signal

import pytest

from treering.cli import main
from treering.cli.init import commented_recipes
from treering.errors import TreeringError
from treering.evaluation.overlap import OverlapRecipe
from treering.growth import GrowthRecipe
from treering.growth.continual import ContinualRecipe
from treering.growth.study import StudyRecipe
from treering.recipe import load_recipe
from treering.reproduction import ReproductionRecipe
from treering.training import ExpertRecipe

SCHEMAS = {
    "expert.yaml": (ExpertRecipe, []),
    "grow.yaml": (GrowthRecipe, ["substrate=s", "data=d", "output=o"]),
    "branch.yaml": (GrowthRecipe, ["model=m", "data=d", "output=o"]),
    "study.yaml": (StudyRecipe, ["tokenizer=t", "data=d", "output=o"]),
    "continual.yaml": (ContinualRecipe, ["output=o"]),
    "overlap.yaml": (OverlapRecipe, ["output=o"]),
    "reproduction.yaml": (ReproductionRecipe, ["output=o"]),
}


@pytest.fixture
def init(monkeypatch, capsys, tmp_path):
    """``init("DIR")`` in an empty directory: exit status and all that was said."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["treering", "init", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out + said.err

    return run


def test_every_recipe_is_written_and_fits_its_schema(init, tmp_path):
    assert init()[0] == 0
    written = {path.name: path for path in (tmp_path / "recipes").iterdir()}
    assert written.keys() == SCHEMAS.keys() == commented_recipes().keys()
    for name, (schema, missing) in SCHEMAS.items():
        load_recipe(written[name], schema, None, missing)


def test_nothing_is_written_over(init, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grow.yaml").write_text("plan: branch\n")
    (tmp_path / "mine" / "branch.yaml").symlink_to(tmp_path / "elsewhere")
    status, said = init("mine")
    assert status == 0 and "grow.yaml: is there, with changes; left as it is" in said and "study.yaml: written" in said
    assert (tmp_path / "mine" / "grow.yaml").read_text() == "plan: branch\n"
    assert not (tmp_path / "elsewhere").exists()
    assert "study.yaml: is there already" in init("mine")[1]


def test_a_file_is_no_directory_of_recipes(init, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, said = init("file")
    assert status == 2 and "file is a file" in said and (tmp_path / "file").read_text() == "mine"


def test_a_missing_recipe_is_told_with_where_they_come_from(tmp_path):
    with pytest.raises(TreeringError, match="treering init"):
        load_recipe(tmp_path / "expert.yaml", ExpertRecipe)
