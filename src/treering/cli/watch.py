"""``treering watch``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from treering.reading import printable

if TYPE_CHECKING:
    from treering.training.status import Finished, Seen, Status


def watch(
    directory: Annotated[str, typer.Argument(help="output of train, grow, study or demo, finished or not")],
    once: Annotated[bool, typer.Option("--once", help="look once, instead of until the run ends")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="seconds between two looks")] = 2.0,
    json_: Annotated[bool, typer.Option("--json", help="as JSON, a line for each look")] = False,
) -> None:
    """Show a run that goes on in another terminal, or that will: step, loss, validation, speed and the time left.

    Example: treering watch fi --once --json
    """
    from rich.live import Live

    from treering.cli.console import results

    console, looks = results(), _looks(directory, once, every)
    if json_:
        for seen in looks:
            print(json.dumps(_as_json(seen)), flush=True)
    elif console.is_terminal and not once:
        with Live(console=console, auto_refresh=False) as live:
            for seen in looks:
                live.update(_shown(seen), refresh=True)
    else:
        shown = None
        for seen in looks:
            if seen != shown:
                console.print(_shown(seen))
            shown = seen


def _wait(directory: str, every: float) -> None:
    """Wait for a run: one that has only just been begun has nothing on the disk while its libraries are imported."""
    from treering.cli.console import plain, progress
    from treering.training.status import NoRun, look

    for looks in count():
        try:
            look(directory)
            return
        except NoRun:
            if looks == 0:
                progress().print(plain(f"waiting for a run at {directory}; Ctrl-C ends that"))
            time.sleep(every)


def _looks(directory: str, once: bool, every: float) -> Iterator[Seen]:
    """What is seen of a run, once it is there, again and again until it has ended."""
    from treering.training.status import look

    if not once:
        _wait(directory, every)
    while (seen := look(directory)).state == "running" and not once:
        yield seen
        time.sleep(every)
    yield seen


def _as_json(seen: Seen) -> dict[str, object]:
    said = {name: part and part.model_dump() for name, part in (("status", seen.status), ("finished", seen.finished))}
    return asdict(seen) | said


def _shown(seen: Seen) -> Text:
    return Text("\n".join(printable(line, len(line)) for line in in_words(seen, time.time()).split("\n")))


def in_words(seen: Seen, now: float) -> str:
    """What is seen of a run, in lines that fit a narrow terminal; ``now`` in seconds since 1970."""
    name = f"{seen.output}/{seen.run}" if seen.run else seen.output
    if seen.state == "complete":
        return f"{name}: complete" + (f"\n  {_finished(seen.finished)}" if seen.finished else "")
    lines = [f"{name}: {seen.state}" + (f", pid {seen.process}" if seen.process else "")]
    if seen.status:
        lines += _standing(seen.status, now, seen.state == "running")
    elif seen.state == "running":
        lines.append("  it has not said yet where it stands")
    if seen.state == "stopped":
        lines.append("  no process on this machine writes it; the same command goes on with it")
    return "\n".join(lines)


def _standing(status: Status, now: float, running: bool) -> Iterator[str]:
    of = f"stage {status.stage} of {status.stages}, " if status.stage else ""
    share = status.step / max(status.steps, 1)
    yield f"  {of}step {status.step:,} of {status.steps:,} ({share:.0%}), {status.tokens:,} tokens"
    if running and status.tokens_per_second:
        left = "" if status.stage is None else " of this stage"
        yield f"  {status.tokens_per_second:,.0f} tokens/s, {_duration(status.seconds_left)} left{left}"
    if status.loss is not None:
        yield f"  loss {status.loss:.3f} nats/token ({status.bits_per_byte or 0:.3f} bits/byte)"
    if status.validation and status.best:
        best = f", best {status.best.bits_per_byte:.3f} at step {status.best.step:,}"
        shown = "" if status.best == status.validation else best
        yield f"  validation {status.validation.bits_per_byte:.3f} bits/byte at step {status.validation.step:,}{shown}"
    yield f"  said {_duration(max(now - status.updated, 0))} ago"


def _finished(run: Finished) -> str:
    kept = "" if run.kept_step == run.steps else f" (of step {run.kept_step:,})"
    return (
        f"{run.steps:,} steps, {run.tokens:,} tokens in {_duration(run.seconds)}\n"
        f"  validation {run.validation_bits_per_byte:.3f} bits/byte{kept}"
    )


def _duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3 h 05 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440:,} d {minutes % 1440 // 60} h"
