"""``treering init``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="where they go")] = Path("recipes"),
) -> None:
    """Write commented recipes to start from; a file that is there stays as it is.

    Example: treering init, then treering train recipes/expert.yaml --substrate substrate --data data-fi -o fi
    """
    from treering.cli.console import plain, results
    from treering.errors import TreeringError

    if directory.exists() and not directory.is_dir():
        raise TreeringError(f"{directory} is a file; give the directory that the recipes go to.")
    directory.mkdir(parents=True, exist_ok=True)
    out = results()
    for name, content in commented_recipes().items():
        out.print(plain(f"{directory / name}: {_write(directory / name, content)}"), soft_wrap=True)


def commented_recipes() -> dict[str, str]:
    """The recipes that come with Treering, by their files' names."""
    files = (resources.files("treering") / "recipes").iterdir()
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name)}


def _write(path: Path, content: str) -> str:
    """Write a file if nothing stands there; say what was done."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        same = path.is_file() and path.read_bytes() == content.encode("utf-8")
        return "is there already" if same else "is there, with changes; left as it is"
    return "written"
