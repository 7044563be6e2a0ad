"""``treering model …``: backbones and their sizes."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Backbones: presets and their parameters.")


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(metavar="[PRESET]", help="a preset; without one, all")] = None,
    json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Total, frozen and active parameters of a preset, beside what the paper prints."""
    from dataclasses import asdict

    from rich import print_json
    from rich.table import Table

    from treering.backbone import PRESETS, count_parameters, preset
    from treering.cli.console import results

    rows = []
    for key in [name] if name else PRESETS:
        shape = preset(key)
        count = count_parameters(shape)
        rows.append(
            {
                "preset": key,
                "total": count.total,
                "frozen": count.frozen,
                "active": count.active,
                **asdict(shape),
            }
        )
    if json:
        print_json(data=rows)
        return
    table = Table("preset", "layers", "d_model", "heads", "vocabulary", "context", "substrate", box=None)
    for column in ("total", "frozen", "active", "paper"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = [f"{row[c]:,}" for c in ("total", "frozen", "active")]
        shape_columns = ("preset", "layers", "d_model", "heads", "vocab_size", "context", "substrate")
        table.add_row(*(str(row[c]) for c in shape_columns), *counts, row["paper"] or "")
    console = results()
    console.print(table)
    for row in rows:
        if row["note"]:
            console.print(f"[bold]{row['preset']}[/]: {row['note']}", highlight=False)
