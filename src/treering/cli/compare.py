"""``treering compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treering.cli import arguments
from treering.errors import TreeringError

FORMATS = (".html", ".md", ".csv", ".json")


def compare(
    models: Annotated[list[str], typer.Argument(help="two or more models: DIR, NAME=DIR, hub:NAME, FILE.gguf")],
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE: every document of a file")] = None,
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval's tasks, with commas; see treering eval tasks")] = "",
    questions: Annotated[str | None, typer.Option(metavar="DIR", help="question sets on disk, for --tasks")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="examples before a question, not the task's own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents and questions of each at most")] = None,
    device: Annotated[str | None, typer.Option(help="where models answer tasks; a GPU if there is one")] = None,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="FILE.html, .md, .csv or .json; again for another")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="cells and pairs as JSON instead of tables")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """Models side by side on texts (bits per byte) and tasks, and who beats whom by a paired bootstrap.

    Example: treering compare base=smollm2 joined --data data-ru --data data-en -o compared.html
    """
    from dataclasses import asdict
    from json import dumps

    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation import document_losses
    from treering.evaluation.comparison import (
        BITS,
        Found,
        Subject,
        as_comparison_tables,
        as_csv,
        as_markdown,
    )
    from treering.evaluation.comparison import compare as compare_found
    from treering.output import write_file
    from treering.report import as_html, write_page
    from treering.report.comparison import comparison_report
    from treering.tokenizer import load

    if unknown := [path for path in output or [] if path.suffix not in FORMATS]:
        raise TreeringError(f"{unknown[0]} should end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    for page in output or []:
        if page.suffix == ".html":
            arguments.page(page)
    entries = dict(arguments.named(entry) for entry in models)
    if len(entries) < 2 or len(entries) < len(models):
        raise TreeringError("Give two models or more, each with a name of its own: NAME=DIR.")
    texts = arguments.texts(text, data, limit)
    chosen = arguments.listed(tasks)
    if not texts and not chosen:
        raise TreeringError("Nothing to compare on: give --data DIR, --text NAME=FILE, or --tasks NAME.")
    if chosen:
        from treering.evaluation.harness import evaluate_tasks
    console = progress()
    found: dict[str, dict[Subject, Found]] = {}
    for name, path in entries.items():
        with console.status(f"measuring {path} …"):
            model = load_model(path, trust_remote_code=trust_remote_code)
            tokenizer = load(path, trust_remote_code)
            own: dict[Subject, Found] = {
                Subject(its, BITS): document_losses(model, tokenizer, documents) for its, documents in texts.items()
            }
            if chosen:
                answers = evaluate_tasks(name, model, tokenizer, chosen, questions, shots, limit, device).answers
                own |= {Subject(task, measure): values for (task, measure), values in answers.items()}
            found[name] = own
    comparison = compare_found(found)
    for file in output or []:
        if file.suffix == ".html":
            write_page(file, as_html(comparison_report(comparison, arguments.command())))
            continue
        content = {
            ".md": lambda: as_markdown(comparison),
            ".csv": lambda: as_csv(comparison),
            ".json": lambda: dumps(asdict(comparison), indent=1),
        }[file.suffix]()
        write_file(file, content)
    if json:
        print_json(data=asdict(comparison))
        return
    out = results()
    for table in as_comparison_tables(comparison):
        print_table(out, table)
        out.print()
