"""The directory of an unfinished run: whose it is, what in it can be trusted, and what is put aside."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from treering.errors import TreeringError
from treering.output import require_new, unfinished_of
from treering.reading import printable
from treering.seal import damage
from treering.training.processes import decided, processes
from treering.training.record import read_record, write_record


def is_complete(output: Path) -> bool:
    """Whether a run has left its output, and nothing that it would still clean up if it were started again."""
    return output.exists() and not unfinished_of(output).exists()


def was_made(
    made: Mapping[str, Any] | None, run: Mapping[str, Any], unfinished: Path, file: str, console: Console
) -> bool:
    """Whether what ``made`` an output was this very ``run``, which has nothing left to do but to clean up.

    A run that does not say what it was made from (its ``origin``) is only known by what it left in ``unfinished``.
    """
    own = as_json(run)
    if made != own:
        return False
    return read_record(unfinished / file, console) == own if unfinished.exists() else bool(own["origin"])


def require_new_run(output: Path, made: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
    """Check that nothing stands where a run shall leave its output.

    Args:
        made: what made what stands there, if it says so.

    Raises:
        TreeringError: something does; in what it was made otherwise is told.
    """
    if made is not None and (other := first_difference(made, as_json(run))):
        raise TreeringError(
            f"{output} already exists with other content, of another run ({other}). Choose another output, or remove "
            "it; nothing was written."
        )
    require_new(output)


def first_difference(made: Any, wanted: Any, name: str = "") -> str | None:
    """Where two records differ first, as ``settings.tokens: 1000 there, 2000 here``; None if they do not."""
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        names = dict.fromkeys([*made, *wanted])
        found = (first_difference(made.get(key), wanted.get(key), f"{name}.{key}".strip(".")) for key in names)
        return next(filter(None, found), None)
    if made == wanted:
        return None
    return printable(f"{name}: {json.dumps(made)} there, {json.dumps(wanted)} here")


def claim(unfinished: Path, file: str, run: Mapping[str, Any], console: Console) -> None:
    """Make the directory ``unfinished`` this run's own, by a ``file`` that says what the run is, or find that it is.

    What a process that died was writing there is removed.

    Raises:
        TreeringError: it is another run's, or does not say whose it is; nothing was touched.
    """
    run = as_json(run)

    def decide() -> None:
        known = read_record(unfinished / file, console)
        content = [path for path in unfinished.glob("*") if not path.name.startswith(".")]
        if known != run and (known is not None or content):
            raise TreeringError(
                f"{unfinished} holds an unfinished run of another recipe or another version of Treering"
                f"{_told(known, run)} (see {file} there). Finish it with those, choose another output, or delete it."
            )
        unfinished.mkdir(parents=True, exist_ok=True)
        for leftover in unfinished.glob(".*.partial"):
            remove(leftover)
        if known is None:
            write_record(unfinished / file, run)

    decided(decide)


def _told(known: Any, run: Mapping[str, Any]) -> str:
    return f": {first_difference(known, run)}" if isinstance(known, Mapping) else ""


def intact_checkpoint(unfinished: Path, console: Console) -> Path | None:
    """The newest checkpoint that is what was written; damaged ones on the way to it are told and put aside.

    Of several processes, the first decides for all.
    """

    def decide() -> Path | None:
        found = checkpoints(unfinished)
        for checkpoint in reversed(found):
            if sound(checkpoint, console):
                return checkpoint
        if found:
            console.print("  no intact checkpoint is left: the run begins anew", highlight=False)
        return None

    return decided(decide)


def checkpoints(unfinished: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    found = [path for path in unfinished.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def sound(directory: Path, console: Console) -> bool:
    """Whether a sealed directory is there and is what was written; a damaged one is told and put aside."""
    if not os.path.lexists(directory):
        return False
    try:
        fault = damage(directory)
    except OSError as error:
        fault = f"it cannot be read: {error}"
    if fault is not None:
        put_aside(directory, fault, console)
    return fault is None


def put_aside(directory: Path, why: str, console: Console) -> None:
    """Rename what cannot be used to ``….damaged``, which goes with the rest when the run is finished."""
    aside = directory.with_name(f"{directory.name}.damaged")
    remove(aside)
    directory.rename(aside)
    console.print(f"  {directory} cannot be used: {why}. It was put aside as {aside.name}", highlight=False)


def clean(*directories: Path) -> None:
    """Take directories away when no process needs them any more."""
    processes().wait_for_everyone()
    if processes().is_main_process:
        for directory in directories:
            remove(directory)
    processes().wait_for_everyone()


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
