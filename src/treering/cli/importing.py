"""``treering import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    source: Annotated[str, typer.Argument(metavar="DIR|hub:NAME", help="a checkpoint of the paper's author")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the model that is made")],
    rotary: Annotated[
        Literal["halves", "pairs"],
        typer.Option(help="what its attention turns together: the halves of a head, or neighbours; its code says"),
    ],
    names: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="what it calls its modules, where not as expected")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="MODULE", help="of several experts in one checkpoint, the one below MODULE")
    ] = None,
) -> None:
    """Write a checkpoint of the paper's author (hub:Bochkov/…) as a plain GPT-NeoX one; none of its code is run.

    Example: treering import hub:Bochkov/best_bvv_ru --rotary halves -o best_bvv_ru
    """
    from treering.cli.console import caution, results
    from treering.importing import Names, import_checkpoint
    from treering.recipe import load_recipe

    complete = import_checkpoint(source, output, rotary, load_recipe(names, Names) if names else None, part)
    results().print(f"{output}", highlight=False, markup=False)
    if not complete:
        caution(f"{source} has no tokenizer.json: put its tokenizer into {output} before use.")
