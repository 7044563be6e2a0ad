"""``treering grow``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def grow(
    recipe: Annotated[Path, typer.Argument(help="YAML file; recipes/grow.yaml is a commented one")],
    substrate: Annotated[str | None, typer.Option(help="replaces the recipe's substrate")] = None,
    model: Annotated[str | None, typer.Option(help="replaces the recipe's model")] = None,
    data: Annotated[str | None, typer.Option(help="replaces the recipe's data")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="replaces the recipe's output")] = None,
    plan: Annotated[str | None, typer.Option(help="replaces the recipe's plan by a ready one")] = None,
    dry_run: Annotated[bool, typer.Option(help="show the stages and what they cost, and stop")] = False,
) -> None:
    """Grow a model stage by stage; run the same command again to go on after an interruption."""
    from io import BytesIO

    from treering.cli.console import progress, results
    from treering.growth import GrowthRecipe, grow_recipe, survey
    from treering.growth.cost import as_table
    from treering.growth.recipe import as_plan, begin
    from treering.output import write_file
    from treering.recipe import load_recipe
    from treering.report import loss_curves

    console = progress()
    given = {"substrate": substrate, "model": model, "data": data, "output": output, "plan": plan}
    chosen = load_recipe(recipe, GrowthRecipe, given)
    found = begin(chosen)
    _, costs = survey(found.model, found.corpus, as_plan(chosen.plan), chosen.training)
    (results() if dry_run else console).print(as_table(costs))
    if dry_run:
        return
    result = grow_recipe(chosen, console, found)
    picture = BytesIO()
    loss_curves({Path(chosen.output).name: result.history}).savefig(picture, format="png", dpi=144)
    write_file(Path(chosen.output) / "growth.png", picture.getvalue())
    last = result.stages[-1]
    console.print(
        f"{chosen.output}: {last.depth} blocks, {sum(stage.tokens for stage in result.stages):,} tokens in "
        f"{sum(stage.seconds + stage.prefix_seconds for stage in result.stages):,.0f} s, validation "
        f"{last.validation_bits_per_byte:.3f} bits/byte"
    )
