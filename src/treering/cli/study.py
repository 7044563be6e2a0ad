"""``treering study …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treering.cli import arguments

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


def _leave_page(output: str) -> None:
    """Write a finished study's page into it."""
    from treering.report import as_html, write_page
    from treering.report.directory import page_of, report_of

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

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.evaluation.gains import as_gains_table, lines
    from treering.evaluation.overlap import OverlapRecipe, overlap
    from treering.output import write_file
    from treering.recipe import load_recipe
    from treering.report import as_png, overlaps

    chosen = load_recipe(recipe, OverlapRecipe, {"output": output}, set_ or ())
    found = overlap(chosen, progress())
    write_file(Path(chosen.output) / "composition.png", as_png(overlaps(lines(found))))
    if json:
        print_json(data=asdict(found))
    else:
        print_table(results(), as_gains_table(found))
    _leave_page(chosen.output)


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

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.growth.continual import ContinualRecipe, as_continual_table
    from treering.growth.continual import continual as run_study
    from treering.output import write_file
    from treering.recipe import load_recipe
    from treering.report import arrivals, as_png

    chosen = load_recipe(recipe, ContinualRecipe, {"output": output}, set_ or ())
    found = run_study(chosen, progress())
    write_file(Path(chosen.output) / "continual.png", as_png(arrivals({r.method: r.matrices for r in found})))
    if json:
        print_json(data=[asdict(result) for result in found])
    else:
        print_table(results(), as_continual_table(found))
    _leave_page(chosen.output)


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

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.growth.outcome import as_study_table
    from treering.growth.study import StudyRecipe, histories
    from treering.growth.study import study as run_study
    from treering.output import write_file
    from treering.recipe import load_recipe
    from treering.report import as_png, loss_curves

    chosen = load_recipe(recipe, StudyRecipe, {"data": data, "tokenizer": tokenizer, "output": output}, set_ or ())
    outcomes = run_study(chosen, progress())
    write_file(Path(chosen.output) / "study.png", as_png(loss_curves(histories(chosen))))
    if json:
        print_json(data=[asdict(outcome) for outcome in outcomes])
    else:
        print_table(results(), as_study_table(outcomes))
    _leave_page(chosen.output)


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

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.output import write_file
    from treering.recipe import load_recipe
    from treering.report import as_png
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
    write_file(Path(chosen.output) / "reproduction.png", as_png(verdicts(found.findings)))
    if json:
        print_json(data=asdict(found))
    else:
        print_table(results(), as_rows_table(found))
        print_table(results(), as_claims_table(found.findings))
    _leave_page(chosen.output)
