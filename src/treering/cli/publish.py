"""``treering card`` and ``treering publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="a model: expert, grown, branch or composition")],
    licence: Annotated[str | None, typer.Option(help="the owner's, for the model, as apache-2.0")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="a file with rows of eval bits, eval tasks or compare --json; or again")
    ] = None,
) -> None:
    """Write a model's card (README.md) anew: what it is, how it was made, scores, use, limits, licences.

    Example: treering card joined --licence apache-2.0 --scores bits.json
    """
    from treering.cli.console import results
    from treering.errors import TreeringError
    from treering.publishing import renew_card
    from treering.reading import read_json

    rows = None
    for path in scores or []:
        found = read_json(path)
        found = found.get("cells", found.get("rows")) if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise TreeringError(f"{path} holds no rows of treering eval bits, eval tasks or compare.")
        rows = [*(rows or []), *found]
    renew_card(directory, licence, rows)
    results().print(f"{Path(directory) / 'README.md'}", highlight=False, markup=False)


def publish(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="a model: expert, grown, branch or composition")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="the repository on the hub")],
    upload: Annotated[bool, typer.Option("--upload", help="do it; without this, only show what would be done")] = False,
    public: Annotated[bool, typer.Option("--public", help="a repository that is made now is seen by all")] = False,
    shorten_paths: Annotated[
        bool, typer.Option("--shorten-paths", help="publish the last part of paths in the records alone")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="what would be done as JSON")] = False,
) -> None:
    """Publish a model on the Hugging Face hub, unless paths, secrets or documents would leave the house with it.

    Example: treering publish joined --repo me/joined --shorten-paths
    """
    from dataclasses import asdict

    from rich import print_json
    from rich.filesize import decimal
    from rich.table import Table

    from treering.cli.console import plain, results
    from treering.errors import TreeringError
    from treering.publishing import prepare_publication
    from treering.publishing import publish as send
    from treering.publishing.leaks import told

    out = results()
    if upload:
        out.print(send(directory, repo, shorten_paths, public), highlight=False, markup=False)
        return
    found = prepare_publication(directory, repo, shorten_paths)
    if json:
        print_json(data=asdict(found))
    else:
        table = Table("file", "size", box=None)
        for name, size in found.files.items():
            table.add_row(plain(name), decimal(size))
        out.print(table)
    if found.leaks:
        raise TreeringError(
            f"More than the model would leave the house:\n{told(found.leaks)}\n"
            "Take it away; --shorten-paths shortens paths."
        )
    if not json:
        total = decimal(sum(found.files.values()))
        out.print(
            "Looked through: nothing in it looks like a path, a secret or a document of yours.\n"
            f"{total} would go to {repo}, {'which all would see' if public else 'private'} if it is made now; nothing "
            "was sent. Say --upload to do it.",
            highlight=False,
            markup=False,
        )
