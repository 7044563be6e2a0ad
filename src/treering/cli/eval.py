"""``treering eval …``."""

from __future__ import annotations

from typing import Annotated

import typer

from treering.cli import arguments

app = typer.Typer(no_args_is_help=True, help="Measure models: every result with an interval.")


@app.command()
def bits(
    models: Annotated[list[str], typer.Argument(help="experts and compositions: DIR, NAME=DIR, or a hub name")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: every document of a file; any format data prepare reads"),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    uniform: Annotated[bool, typer.Option(help="add the baseline that knows nothing")] = True,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """Bits per byte on held-out documents, with a 95% interval (bootstrap over documents)."""
    from rich import print_json

    from treering.cli.console import progress, results
    from treering.composition import load_model
    from treering.evaluation import Row, as_table, bits_per_byte, uniform_bits_per_byte
    from treering.tokenizer import load

    texts = arguments.texts_to_measure(text, data, limit)
    console = progress()
    rows: list[Row] = []
    for entry in models:
        name, path = arguments.named(entry)
        tokenizer = load(path, trust_remote_code)
        if uniform and not rows:
            rows += uniform_bits_per_byte(tokenizer, texts)
        with console.status(f"measuring {path} …"):
            model = load_model(path, trust_remote_code=trust_remote_code)
            rows += bits_per_byte(name, model, tokenizer, texts)
    if json:
        print_json(data=rows)
    else:
        results().print(as_table(rows))


@app.command()
def forgetting(
    composition: Annotated[str, typer.Argument(metavar="DIR", help="a composition")],
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE: every document of a file")] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(help="EXPERT=TEXT: a text of an expert's own language; known of experts that Treering trained"),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="a rule to compare, again for each; without any, all that are ready")
    ] = None,
    switched: Annotated[
        bool, typer.Option(help="also pages that change language with every paragraph, from pages that corpora share")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    json: Annotated[bool, typer.Option("--json", help="rows and differences as JSON instead of tables")] = False,
) -> None:
    """What joining costs each expert in its own language, and what it gains, rule by rule, with 95% intervals."""
    from rich import print_json

    from treering.cli.console import progress, results
    from treering.composition import load_model
    from treering.evaluation import as_change_table, as_table, code_switched, measure_forgetting, require_composition
    from treering.tokenizer import load

    model, tokenizer = require_composition(load_model(composition)), load(composition)
    texts = arguments.texts_to_measure(text, data, limit)
    extra = {"switched": code_switched(data or [])[:limit]} if switched else {}
    told: dict[str, list[str]] = {}
    for name, its in arguments.pairs(own, "TEXT"):
        told.setdefault(name, []).append(its)
    with progress().status(f"measuring {composition} …"):
        measured = measure_forgetting(model, tokenizer, texts, rule, told, extra)
    if json:
        print_json(data={"rows": measured.rows, "differences": measured.differences})
        return
    out = results()
    out.print(as_table(measured.rows))
    out.print()
    out.print(as_change_table(measured.differences))


@app.command()
def abilities(
    models: Annotated[list[str], typer.Argument(help="directories or NAME=DIR: models, or a grown one's stages/N")],
    data: Annotated[
        list[str] | None, typer.Option(help="prepared corpus whose held-out documents are measured, each source apart")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="file to measure on, as NAME=FILE or FILE")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text")] = None,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """What small models can do: bits per byte, which paragraph comes next, a value stated before (chance 25%)."""
    from rich import print_json

    from treering.cli.console import progress, results
    from treering.composition import load_model
    from treering.evaluation import Ability, as_abilities_table
    from treering.evaluation import abilities as measure
    from treering.tokenizer import load

    texts = arguments.texts_to_measure(text, data, limit)
    found: list[Ability] = []
    for entry in models:
        name, path = arguments.named(entry)
        with progress().status(f"measuring {path} …"):
            model = load_model(path, trust_remote_code=trust_remote_code)
            found += measure(name, model, load(path, trust_remote_code), texts)
    if json:
        print_json(data=found)
    else:
        results().print(as_abilities_table(found))
