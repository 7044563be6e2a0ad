"""``treering grow``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treering.cli import arguments
from treering.cli.completion import offered
from treering.errors import TreeringError


def grow(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|PLAN",
            autocompletion=offered("plan"),
            help="YAML file (treering init writes commented ones: recipes/grow.yaml, recipes/branch.yaml), or the name "
            "of a ready plan: branch, say",
        ),
    ],
    substrate: Annotated[str | None, typer.Option(help="of a fresh model; replaces the recipe's")] = None,
    model: Annotated[
        str | None, typer.Option(help="that grows: directory, hub:NAME or FILE.gguf; replaces the recipe's")
    ] = None,
    data: Annotated[str | None, typer.Option(help="prepared corpus; replaces the recipe's")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="directory to make; replaces the recipe's")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(autocompletion=offered("plan"), help="a ready plan's name; replaces the recipe's plan")
    ] = None,
    set_: arguments.SetOfRun = None,
    dry_run: Annotated[bool, typer.Option(help="show the stages and what they cost, and stop")] = False,
    json: Annotated[bool, typer.Option("--json", help="with --dry-run: the stages as JSON instead of a table")] = False,
) -> None:
    """Grow a model stage by stage; run the same command again to go on after an interruption.

    Example: treering grow branch --model hub:HuggingFaceTB/SmolLM2-135M --data data-ru -o ru
    """
    from rich import print_json

    from treering.backbone import blocks
    from treering.cli.console import print_fitting, progress, results
    from treering.growth import PLANS, GrowthRecipe, GrowthResult, grow_recipe, survey
    from treering.growth.cost import as_brief_table, as_rows, as_table
    from treering.growth.recipe import Way, as_plan, begin
    from treering.growth.worth import worth_of_copied
    from treering.recipe import check_recipe, load_recipe
    from treering.report import as_png, loss_curves

    if json and not dry_run:
        raise TreeringError("--json is of the stages that --dry-run shows: give both.")
    console = progress()
    given = {"substrate": substrate, "model": model, "data": data, "output": output, "plan": plan}
    if recipe in PLANS and not Path(recipe).is_file():  # an output may have a plan's name
        values = {"plan": recipe} | {name: value for name, value in given.items() if value is not None}
        if dry_run:
            values.setdefault("output", recipe)  # nothing is written
        chosen = check_recipe(values, GrowthRecipe, "command line", set_ or ())
    else:
        chosen = load_recipe(recipe, GrowthRecipe, given, set_ or ())
    found = begin(chosen)
    stages = as_plan(chosen.plan, len(blocks(found.model)))
    _, costs = survey(found.model, found.corpus, stages, chosen.training)
    if json:
        print_json(data=as_rows(costs))
    else:
        print_fitting(results() if dry_run else console, as_table(costs), as_brief_table(costs))
    if isinstance(chosen.plan, Way) and chosen.plan.way == "copied":
        console.print(worth_of_copied(costs))
    if dry_run:
        return

    def draw(grown: GrowthResult) -> bytes:
        return as_png(loss_curves({Path(chosen.output).name: grown.history}))

    result = grow_recipe(chosen, console, found, draw)
    last = result.stages[-1]
    console.print(
        f"{chosen.output}: {last.depth} blocks, {sum(stage.tokens for stage in result.stages):,} tokens in "
        f"{sum(stage.seconds + stage.prefix_seconds for stage in result.stages):,.0f} s, validation "
        f"{last.validation_bits_per_byte:.3f} bits/byte"
    )
