"""``treering study …``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Controlled comparisons: many runs, one table, one page.",
        "study growth recipes/study.yaml --data data-fi -o study",
    ),
)

Output = Annotated[str | None, typer.Option("--output", "-o", help="replaces the recipe's output")]
Json = Annotated[bool, typer.Option("--json", help="the rows as JSON instead of a table")]


@app.callback()
def study() -> None:
    """Controlled comparisons: many runs, one table, one page."""


def _tell(output: str, picture: str, figure: Figure, data: Any, tables: Sequence[Table], json: bool) -> None:
    """Draw what a finished study found, print it as its tables or as JSON, and leave its page."""
    from rich import print_json

    from treering.cli.console import print_table, results
    from treering.output import write_file
    from treering.report import as_html, as_png, write_page
    from treering.report.directory import page_of, report_of

    write_file(Path(output) / picture, as_png(figure))
    if json:
        print_json(data=data)
    else:
        for table in tables:
            print_table(results(), table)
    write_page(page_of(output), as_html(report_of(output)))


@app.command()
def composition(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file; treering init writes a commented one, recipes/overlap.yaml")
    ],
    output: Output = None,
    set_: arguments.SetOfOverlap = None,
    json: Json = False,
) -> None:
    """Owners of one kind of text who share topics, joined by every rule, against one model on all their texts.

    Example: treering study composition recipes/overlap.yaml --set kinds.fi=fi.jsonl --set seeds=[0] -o composition
    """
    from dataclasses import asdict

    from treering.cli.console import progress
    from treering.evaluation.gains import as_gains_table, lines
    from treering.evaluation.overlap import OverlapRecipe, overlap
    from treering.recipe import load_recipe
    from treering.report import overlaps

    chosen = load_recipe(recipe, OverlapRecipe, {"output": output}, set_ or ())
    found = overlap(chosen, progress())
    _tell(chosen.output, "composition.png", overlaps(lines(found)), asdict(found), [as_gains_table(found)], json)


@app.command()
def continual(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file; treering init writes a commented one, recipes/continual.yaml")
    ],
    output: Output = None,
    set_: arguments.SetOfStudy = None,
    json: Json = False,
) -> None:
    """Tasks that arrive one after another: branches by evidence against training on and on, averaging, whole models.

    Example: treering study continual recipes/continual.yaml --set tasks.fi=data-fi --set seeds=[0] -o continual
    """
    from dataclasses import asdict

    from treering.cli.console import progress
    from treering.growth.continual import ContinualRecipe, as_continual_table
    from treering.growth.continual import continual as run_study
    from treering.recipe import load_recipe
    from treering.report import arrivals

    chosen = load_recipe(recipe, ContinualRecipe, {"output": output}, set_ or ())
    found = run_study(chosen, progress())
    figure, data = arrivals({result.method: result.matrices for result in found}), [asdict(result) for result in found]
    _tell(chosen.output, "continual.png", figure, data, [as_continual_table(found)], json)


@app.command()
def growth(
    recipe: Annotated[Path, typer.Argument(help="YAML file; treering init writes a commented one, recipes/study.yaml")],
    data: Annotated[str | None, typer.Option(help="replaces the recipe's data")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="replaces the recipe's tokenizer")] = None,
    output: Output = None,
    set_: arguments.SetOfStudy = None,
    json: Json = False,
) -> None:
    """Growth against monolithic and shallow training; run the same command again to go on after an interruption.

    Example: treering study growth recipes/study.yaml --tokenizer tokenizer --data data --set plan.depth=4 -o study
    """
    from dataclasses import asdict

    from treering.cli.console import progress
    from treering.growth.outcome import as_study_table
    from treering.growth.study import StudyRecipe, histories
    from treering.growth.study import study as run_study
    from treering.recipe import load_recipe
    from treering.report import loss_curves

    chosen = load_recipe(recipe, StudyRecipe, {"data": data, "tokenizer": tokenizer, "output": output}, set_ or ())
    outcomes = run_study(chosen, progress())
    figure, found = loss_curves(histories(chosen)), [asdict(outcome) for outcome in outcomes]
    _tell(chosen.output, "study.png", figure, found, [as_study_table(outcomes)], json)


@app.command()
def reproduction(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file; treering init writes a commented one, recipes/reproduction.yaml")
    ],
    output: Output = None,
    set_: arguments.SetOfOverlap = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the rows and what they cost, and stop")] = False,
    json: Json = False,
) -> None:
    """The claims of the papers that Treering comes from, tried at small scale, with a verdict on each.

    Example: treering study reproduction recipes/reproduction.yaml --set seeds=[0] -o reproduction
    """
    from dataclasses import asdict

    from treering.cli.console import print_table, progress, results
    from treering.recipe import load_recipe
    from treering.report.reproduction import verdicts
    from treering.reproduction import (
        ReproductionRecipe,
        as_claims_table,
        as_cost_table,
        as_rows_table,
        expected,
        reproduce,
    )

    chosen = load_recipe(recipe, ReproductionRecipe, {"output": output}, set_ or ())
    if dry_run:
        print_table(results(), as_cost_table(expected(chosen), len(chosen.rates), len(chosen.seeds)))
        return
    found = reproduce(chosen, progress())
    tables = [as_rows_table(found), as_claims_table(found.findings)]
    _tell(chosen.output, "reproduction.png", verdicts(found.findings), asdict(found), tables, json)
