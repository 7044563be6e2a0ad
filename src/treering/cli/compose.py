"""``treering compose`` and ``treering generate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from treering.cli import arguments
from treering.cli.completion import offered
from treering.errors import TreeringError

if TYPE_CHECKING:
    from rich.table import Table


class JoinByDefault(TyperGroup):
    """``compose A B -o C`` means ``compose join A B -o C``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["join", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=JoinByDefault,
    no_args_is_help=True,
    subcommand_metavar="[join] EXPERT EXPERT... -o OUT | COMMAND ...",
    help=arguments.with_example(
        "Join trained experts into one model, and let experts come and go.",
        "compose fi et hungarian=hu -o joined",
    ),
)

Across = Annotated[
    bool,
    typer.Option(
        "--across-substrates",
        help="allow other substrates, and models that Treering did not dock, of one and the same tokenizer",
    ),
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="a composition")]
Instead = Annotated[
    str | None,
    typer.Option(autocompletion=offered("rule"), help="joins them from now on, instead of the composition's rule"),
]


@app.command()
def join(
    experts: Annotated[list[str], typer.Argument(metavar="[NAME=]EXPERT", help="two or more: directories or hub:NAME")],
    output: Annotated[Path, typer.Option("--output", "-o", help="directory of the composition")],
    rule: Annotated[
        str,
        typer.Option(autocompletion=offered("rule"), help="how they are joined; treering compose rules lists all"),
    ] = "evidence:switch=0.01",
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=WEIGHT", help="of its prior, relative to the others' (1)")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="instead of what its model card says")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="instead of its directory's or hub name")
    ] = None,
    across_substrates: Across = False,
) -> None:
    """Join experts (what compose does if it reads no other command); nothing is trained, and they stay as they are.

    Example: treering compose fi et hungarian=hu --weight fi=2 -o joined
    """
    from treering.cli.console import nothing_to_do, plain, progress
    from treering.composition import compose_directories

    console, named = progress(), arguments.models(experts)
    records: dict[str, dict[str, Any]] = {}
    for field, given in (
        ("weight", arguments.weights(weight).items()),
        ("licence", arguments.pairs(licence, "TEXT")),
        ("origin", arguments.pairs(origin, "TEXT")),
    ):
        for name, value in given:
            records.setdefault(name, {})[field] = value
    there = output.is_dir() and any(output.iterdir())
    composed = compose_directories(named, output, rule, records, across_substrates)
    if there:
        nothing_to_do(output)
        return
    total, substrates = sum(p.numel() for p in composed.parameters()), len(composed.substrates)
    shared = "one substrate" if substrates == 1 else f"{substrates or 'no'} substrates"
    console.print(plain(f"{output}: {', '.join(named)} joined by {composed.rule}; {total:,} parameters, {shared}"))


@app.command()
def add(
    directory: Directory,
    expert: Annotated[str, typer.Argument(metavar="[NAME=]EXPERT", help="a directory or hub:NAME")],
    weight: Annotated[float, typer.Option(help="of its prior, relative to the others'")] = 1.0,
    licence: Annotated[str | None, typer.Option(help="instead of what its model card says")] = None,
    origin: Annotated[str | None, typer.Option(help="instead of its directory's or hub name")] = None,
    rule: Instead = None,
    across_substrates: Across = False,
) -> None:
    """Let one more expert join; the others' files are not touched. What was fitted to the others alone is dropped.

    Example: treering compose add joined law=branch-law --weight 0.5
    """
    from treering.cli.console import plain, progress
    from treering.composition import add_expert, list_experts

    name, path = arguments.named(expert)
    told = {"weight": weight} | {k: v for k, v in (("licence", licence), ("origin", origin)) if v is not None}
    add_expert(directory, path, name, rule, told, across_substrates)
    progress().print(plain(f"{directory}: {name} joined"))
    (joined,) = (record for record in list_experts(directory) if record["name"] == name)
    if joined["same_as"]:
        progress().print(
            plain(f"{name} is byte for byte {joined['same_as'][0]}: nothing new joins, but that model counts for more")
        )


@app.command()
def remove(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="the expert that leaves; compose list shows all")],
    rule: Instead = None,
) -> None:
    """Let an expert leave without a trace: what stays is, to the byte, what composing the others would have made.

    Example: treering compose remove joined hu
    """
    from treering.cli.console import caution, plain, progress
    from treering.composition import remove_expert

    console, foreign = progress(), remove_expert(directory, name, rule)
    console.print(plain(f"{directory}: {name} left"))
    if foreign:
        caution(f"files of yours that were kept may name it: {', '.join(foreign)}")


@app.command()
def cut(
    branch: Annotated[str, typer.Argument(metavar="DIR", help="a branch, as treering grow branch leaves it")],
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for what the branch has alone")],
) -> None:
    """Cut a branch off its trunk, to hand it over: a few megabytes, which join wherever its base is.

    Example: treering compose cut branch-law -o law-alone
    """
    from treering.cli.console import plain, progress
    from treering.composition import cut as cut_off

    names = cut_off(branch, output)
    size = sum(path.stat().st_size for path in Path(output).glob("*.safetensors")) / 2**20
    progress().print(plain(f"{output}: {len(names)} tensors that its base does not have, {size:,.1f} MiB"))


@app.command("list")
def list_(
    directory: Directory, json: Annotated[bool, typer.Option("--json", help="all that is recorded of each")] = False
) -> None:
    """Who is in a composition: weight, size, origin, licence, data, fingerprint.

    Example: treering compose list joined --json
    """
    from treering.cli.console import print_readable, print_table, results
    from treering.composition import list_experts

    experts = list_experts(directory)
    if json:
        print_readable(experts)
    else:
        print_table(results(), experts_table(experts))


@app.command()
def kinds(
    directory: Directory,
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE: every document of a file")] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPERT=TEXT", help="a text of an expert's own; known of experts that Treering trained"),
    ] = None,
    least: Annotated[
        float, typer.Option(min=0, max=0.5, help="the say that experts of one kind leave each other; of equals, 0.5")
    ] = 0.1,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="all that was found, as JSON instead of tables")] = False,
) -> None:
    """Who knows what, by held-out text, and which experts are of one kind, so that speaking together gains.

    Example: treering compose kinds joined --data data-fi --data data-et -o kinds.html
    """
    from dataclasses import asdict

    from rich import print_json

    from treering.cli.console import plain, print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation import as_kinds_table, as_table, find_kinds, require_composition
    from treering.report import as_html, write_page
    from treering.report.measures import kinds_report, kinds_takeaway, together_takeaway
    from treering.tokenizer import load

    page = arguments.page(output)
    model, tokenizer = require_composition(load_model(directory)), load(directory)
    texts = arguments.texts_to_measure(text, data, limit)
    told = arguments.own_texts(own)
    with progress().status(f"measuring {directory} …"):
        found = find_kinds(model, tokenizer, texts, told, least)
    if page:
        write_page(page, as_html(kinds_report(found, arguments.command())))
    if json:
        print_json(data=asdict(found))
        return
    out = results()
    print_table(out, as_table(found.rows))
    out.print()
    print_table(out, as_kinds_table(found))
    for sentence in (kinds_takeaway(found), together_takeaway(found)):
        out.print()
        out.print(plain(sentence))


def experts_table(experts: Sequence[dict[str, Any]]) -> Table:
    """What `treering.composition.list_experts` tells, a row for each."""
    from rich.table import Table

    from treering.cli.console import plain
    from treering.publishing.card import text_licences

    table = Table("expert", "weight", "share", "model", "parameters", "origin", "licence", box=None)
    for column in ("trained on", "fingerprint"):
        table.add_column(column)
    for record in experts:
        training = record.get("training") or {}
        sources = ", ".join(source["name"] for source in (record.get("data") or {}).get("sources", []))
        read = training.get("measured", {}).get("tokens")
        of_text = ", ".join(text_licences(record))
        cells = (
            record["name"],
            f"{record['weight']:g}",
            f"{record['share']:.1%}",
            f"{record['family']} {record['layers']} × {record['width']}",
            f"{record['parameters']:,}" if record["parameters"] else "all shared",
            record.get("origin") or "?",
            record.get("licence") or (f"? (text: {of_text})" if of_text else "?"),
            f"{sources}: {read:,} tokens" if sources and read else sources or "?",
            (record.get("fingerprint") or "")[:12] or ", ".join(f"as {other}" for other in record["same_as"]) or "?",
        )
        table.add_row(*map(plain, cells))
    return table


@app.command()
def reweight(
    directory: Directory,
    weights: Annotated[list[str], typer.Argument(metavar="NAME=WEIGHT", help="relative to the others'")],
) -> None:
    """Trust some experts more before a text begins; 0 silences one. Those not named keep their weights.

    Example: treering compose reweight joined fi=2 hu=0
    """
    from treering.cli.console import plain, progress
    from treering.composition import reweight as store

    chosen = dict(arguments.weights(weights))
    store(directory, chosen)
    progress().print(plain(f"{directory}: {', '.join(f'{name} {weight:g}' for name, weight in chosen.items())}"))


@app.command()
def rule(
    directory: Directory,
    rule: Annotated[
        str, typer.Argument(metavar="RULE", autocompletion=offered("rule"), help="compose rules lists all")
    ],
) -> None:
    """Store another rule in a composition.

    Example: treering compose rule joined top_k:k=2
    """
    from treering.cli.console import plain, progress
    from treering.composition import set_rule

    set_rule(directory, rule)
    progress().print(plain(f"{directory}: joined by {rule}"))


@app.command()
def rules(json: Annotated[bool, typer.Option("--json", help="as JSON instead of a table")] = False) -> None:
    """All rules, with what can be set in each (NAME:KEY=VALUE,…) and where they come from.

    Example: treering compose rules --json
    """
    from rich import print_json
    from rich.table import Table

    from treering.cli.console import results
    from treering.composition import RULES
    from treering.composition.specs import parameters

    rows: list[dict[str, Any]] = [
        {
            "rule": name,
            "parameters": {key: field.default for key, field in parameters(known.function).model_fields.items()},
            "source": known.source,
        }
        for name, known in RULES.items()
    ]
    if json:
        print_json(data=rows)
        return
    table = Table("rule", "can be set", "source", box=None)
    for row in rows:
        table.add_row(row["rule"], ", ".join(f"{k}={v}" for k, v in row["parameters"].items()), row["source"])
    results().print(table)


@app.command()
def fit(
    directory: Directory,
    rule: Annotated[
        str, typer.Option(autocompletion=offered("fitted rule"), help="weighted, gate or adapter")
    ] = "gate:switch=0.01",
    data: Annotated[
        list[str] | None, typer.Option(help="a corpus prepared with --calibration: the documents it sets apart")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE: every document of a file")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="to read at most; 1% of the experts' training tokens if not given")
    ] = None,
) -> None:
    """Fit weights, a gate or an adapter on top of the experts, on text that none was trained on; then join by it.

    Example: treering compose fit joined --rule gate:switch=0.01 --data data-fi --data data-hu
    """
    from treering.cli.console import plain, progress
    from treering.composition import fit_directory

    texts = arguments.texts(text, data, split="calibration")
    if not texts:
        raise TreeringError(
            "There is no text to fit on: give --data DIR, a corpus prepared with --calibration, or --text NAME=FILE."
        )
    console = progress()
    done = fit_directory(directory, texts, rule, tokens, console)
    read = ", ".join(f"{name} {count:,}" for name, count in done.texts.items())
    told = (
        f"{directory}: joined by {done.rule}, fitted on {done.tokens:,} tokens ({read}); "
        f"{done.before:.4f} → {done.after:.4f} nats per token there"
    )
    console.print(plain(told))


def generate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="an expert, a composition, or hub:NAME")],
    text: Annotated[str, typer.Argument(help="what to go on from, - for what comes in; may be empty")],
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens at most")] = 100,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest token each time; 0.8 if not given")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="of the likeliest tokens that are sampled; 0.95 if not given"),
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="beam search, with temperature 0")] = 1,
    seed: Annotated[int | None, typer.Option(help="for the same text again")] = None,
    rule: Annotated[
        str | None,
        typer.Option(autocompletion=offered("rule"), help="join a composition's experts by another rule this time"),
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="draw one expert for the answer: an exact sample of evidence at one's cost")
    ] = False,
    speculate: arguments.Speculate = True,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """Let a model go on from a text.

    Example: echo -n "Olipa kerran" | treering generate joined - --tokens 50 --seed 1
    """
    from treering.cli.console import progress, shown, streamer
    from treering.composition import load_model, running
    from treering.evaluation import generate as generate_text
    from treering.evaluation import prompt_ids, require_one_way
    from treering.tokenizer import load

    progress()
    if text == "-":
        text = arguments.contents(Path("-"))
    tokenizer = load(model, trust_remote_code)
    loaded = load_model(model, rule=rule, trust_remote_code=trust_remote_code)
    with running(model):
        require_one_way(loaded, temperature, top_p, beams, draw)
        prompt_ids(loaded, tokenizer, text, tokens)  # what cannot work is said before anything is printed
        stream = streamer(tokenizer) if beams == 1 else None
        print(text, end="", flush=True)
        written = generate_text(
            loaded, tokenizer, text, tokens, temperature, top_p, beams, seed, stream, draw, speculate
        )
    if stream is None:
        print(shown(written))
