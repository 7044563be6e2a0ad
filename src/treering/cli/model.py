"""``treering model …``: what a model is, and the backbones' sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from treering.cli import arguments
from treering.cli.completion import offered
from treering.errors import TreeringError

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Models and compositions, and the presets of backbones.",
        "model info joined",
    ),
)


@app.command()
def info(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|PRESET]",
            autocompletion=offered("preset"),
            help="a model: DIR, hub:NAME or FILE.gguf; a preset; or all presets",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="all that is known, as JSON")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """What a model or composition is, where it comes from and how large; of a preset, beside what the paper prints.

    Example: treering model info joined
    """
    from treering.backbone import PRESETS

    if name is None or name in PRESETS:
        _show_presets([name] if name else list(PRESETS), json)
    elif name.isidentifier() and not Path(name).exists():
        raise TreeringError(f"There is no preset {name!r}, and no directory either. Presets are: {', '.join(PRESETS)}.")
    else:
        _show_model(name, json, trust_remote_code)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(metavar="DIR|hub:NAME", help="a PEFT adapter, in safetensors")],
    base: Annotated[str, typer.Option(help="the model that it was trained on: DIR, hub:NAME or FILE.gguf")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the model that is made")],
) -> None:
    """Merge a PEFT adapter into its model, which is then one that can be composed, grown, measured and published.

    Example: treering model merge lora-law --base SmolLM2-135M -o law
    """
    from treering.cli.console import progress, results
    from treering.composition import load_model
    from treering.composition.adapters import merge as merge_into
    from treering.composition.joining import require_single
    from treering.output import require_new
    from treering.tokenizer import load

    progress()
    require_new(output)  # before a model is read for nothing
    merge_into(adapter, require_single(base, load_model(base)), load(base), output)
    results().print(f"{output}", highlight=False, markup=False)


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL", help="two or more: directories or hub:NAME")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the model that is made")],
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="in the mean, relative to the others' (1)")
    ] = None,
    any_beginning: Annotated[
        bool, typer.Option("--any-beginning", help="allow models whose records do not say that they began as one")
    ] = False,
) -> None:
    """Make one model of several that went on from one, each with its own text: the mean of their weights.

    It costs what one of them costs, and may be gone on from again (treering train --start).

    Example: treering model average clinic-a clinic-b --weight clinic-a=2 -o medicine
    """
    from treering.cli.console import plain, progress
    from treering.composition import average as average_into

    named = arguments.models(models)
    average_into(named, output, arguments.weights(weight), any_beginning)
    progress().print(plain(f"{output}: the mean of {', '.join(named)}"))


def _show_model(name: str, json: bool, trust_remote_code: bool) -> None:
    from rich.table import Table

    from treering.cli.compose import experts_table
    from treering.cli.console import plain, print_readable, print_table, progress, results
    from treering.composition import describe

    progress()
    known = describe(name, trust_remote_code)
    if json:
        print_readable(known)
        return
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _lines(known):
        table.add_row(label, plain(text))
    results().print(table)
    if "experts" in known:
        print_table(results(), experts_table(known["experts"]))


def _lines(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `treering.composition.describe` tells, in people's words; what is not known is left out."""
    base, training = known.get("base"), known.get("training") or {}
    read, origin = training.get("measured", {}).get("tokens"), training.get("origin", {})
    sources = ", ".join(source["name"] for source in (known.get("data") or {}).get("sources", []))
    blocks = known.get("layers")
    told = {
        "kind": known["kind"] + (f" of {len(known['experts'])} experts" if "experts" in known else ""),
        "rule": known.get("rule"),
        "family": known.get("family"),
        "shape": blocks and f"{blocks} blocks × {known['width']}, context {known['context'] or '?'}",
        "vocabulary": known.get("vocabulary") and f"{known['vocabulary']:,} tokens",
        "parameters": f"{known['parameters']:,}",
        "on disk": f"{known['bytes'] / 2**20:,.1f} MiB {', '.join(known.get('precisions', []))}".strip(),
        "substrate": known.get("substrate"),
        "grown on": base and f"the lowest {base['blocks']} blocks of {base['base']}",
        "went on from": origin.get("start"),
        "taught by": (origin.get("teacher") or {}).get("name"),
        "mean of": ", ".join(f"{one['name']} ({one['share']:.1%})" for one in origin.get("average", [])),
        "trained on": (f"{sources}: {read:,} tokens" if sources and read else sources),
        "licence": known.get("licence"),
    }
    return ((label, str(text)) for label, text in told.items() if text)


def _show_presets(names: list[str], json: bool) -> None:
    from dataclasses import asdict

    from rich import print_json
    from rich.table import Table

    from treering.backbone import count_parameters, preset
    from treering.cli.console import print_fitting, results, transposed

    rows = []
    for name in names:
        shape = preset(name)
        count = count_parameters(shape)
        rows.append(
            {"preset": name, "total": count.total, "frozen": count.frozen, "active": count.active, **asdict(shape)}
        )
    if json:
        print_json(data=rows)
        return

    def tabled(shapes: Sequence[str], counts: Sequence[str]) -> Table:
        table = Table(*({"vocab_size": "vocabulary"}.get(name, name) for name in shapes), box=None)
        for name in (*counts, "paper"):
            table.add_column(name, justify="right")
        for row in rows:
            shown = [f"{row[name]:,}" for name in counts]
            table.add_row(*(str(row[name]) for name in shapes), *shown, row["paper"] or "")
        return table

    console = results()
    whole = tabled(
        ("preset", "layers", "d_model", "heads", "vocab_size", "context", "substrate"), ("total", "frozen", "active")
    )
    brief = tabled(("preset", "layers", "d_model"), ("total", "active"))
    print_fitting(console, whole, brief if len(rows) > 1 else transposed(whole))
    for row in rows:
        if row["note"]:
            console.print(f"[bold]{row['preset']}[/]: {row['note']}", highlight=False)
