"""The notebooks run from top to bottom, check what they claim, and print what they are committed with."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell wrote or drew, without numbers, which may differ from machine to machine."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [
        output.get("text") or sorted(output.get("data", ())) for output in outputs if output.get("name") != "stderr"
    ]
    return re.sub(r"\d[\d.,]*|[0-9a-f]{16}…", "#", "\n".join(map(str, texts))).split()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path, tmp_path):
    shown = nbformat.read(path, as_version=4)
    ran = nbformat.from_dict(shown)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(ran, timeout=600, coalesce_streams=True, resources=place).execute()
    assert printed(ran) == printed(shown) and printed(shown)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["branch", "languages"]
