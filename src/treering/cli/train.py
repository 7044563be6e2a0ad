"""``treering train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treering.cli import arguments


def train(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file; treering init writes a commented one, recipes/expert.yaml")
    ],
    substrate: Annotated[str | None, typer.Option(help="replaces the recipe's substrate")] = None,
    data: Annotated[str | None, typer.Option(help="replaces the recipe's data")] = None,
    start: Annotated[
        str | None, typer.Option(help="expert on the same substrate to go on from: a directory, or hub:NAME")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="model or composition of the same tokenizer to learn from, too: a directory, or hub:NAME"),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="replaces the recipe's output")] = None,
    set_: arguments.SetOfRun = None,
) -> None:
    """Train one expert on a frozen substrate, from nothing or from an expert that exists; run the same command again
    to go on after an interruption.

    Example: treering train recipes/expert.yaml --substrate substrate --data data-fi --set training.epochs=2 -o fi
    """
    from treering.cli.console import progress
    from treering.recipe import load_recipe
    from treering.training import ExpertRecipe, train_expert

    console = progress()
    chosen = load_recipe(
        recipe,
        ExpertRecipe,
        {"substrate": substrate, "data": data, "start": start, "teacher": teacher, "output": output},
        set_ or (),
    )
    console.print(f"training {chosen.output} on {chosen.data}")
    result = train_expert(chosen, console)
    console.print(
        f"{chosen.output}: {result.tokens:,} tokens in {result.seconds:,.0f} s, validation "
        f"{result.validation_bits_per_byte:.3f} bits/byte"
    )
