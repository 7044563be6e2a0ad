"""What a run shows while it goes on: loss, bits per byte, tokens/s, memory, time left; and how it stops early."""

from __future__ import annotations

import math
import signal
import sys
import time
from types import FrameType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from treering.training.divergence import Diverged
from treering.training.length import lowest
from treering.training.processes import in_any

ROOMY = 100
"""Columns of a terminal from which on the bar also shows loss and memory."""


class Interruption(TrainerCallback):
    """Stops at the end of the step in which Ctrl-C or SIGTERM came, with a checkpoint to go on from.

    A context: at its end signals do what they did before. So they do when a second one comes, which means now; from
    ``torchrun``, which sends every process the signal that the terminal has sent already, it is the same one again.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        return self

    def __exit__(self, *error: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: whoever runs it there stops it in another way
                return

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        print("\nstopping after this step …", file=sys.stderr)
        if not torch.distributed.is_initialized():
            self.__exit__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.requested = in_any(self.requested)  # all processes must leave at the same step
        if self.requested:
            control.should_save = control.should_training_stop = True


class Clock(TrainerCallback):
    """Asks for a checkpoint when the run began, or the last one was written, so many minutes ago."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if in_any(time.monotonic() - self.saved >= self.seconds):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()


class EvaluateAtEnd(TrainerCallback):
    """Measures the finished model, whether or not its last step falls on a regular evaluation."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_evaluate = True


class Plateau(TrainerCallback):
    """Ends a run after ``patience`` validations in a row without gain; what it knows is in the Trainer's log."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seen = [entry for entry in state.log_history if "eval_loss" in entry]
        best = lowest(seen)
        if sum(best is not None and entry["step"] > best["step"] for entry in seen) >= self.patience:
            control.should_training_stop = True
            control.should_save = False  # whoever went on from a checkpoint here would train beyond the end


class Display(TrainerCallback):
    """Shows the run on the console: a live bar on a terminal, a line per validation elsewhere. A context.

    Args:
        tokens_per_step: over all processes.
        bytes_per_token: of the validation text, to show nats per token as bits per byte.
    """

    def __init__(self, tokens_per_step: int, bytes_per_token: float, console: Console) -> None:
        self.tokens_per_step = tokens_per_step
        self.bytes_per_token = bytes_per_token
        self.console = console
        self.progress = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            *(
                TextColumn(text, table_column=Column(no_wrap=True))
                for text in ("{task.completed:,.0f}/{task.total:,.0f} steps", "{task.fields[status]}", "left")
            ),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step, status="")
            self.progress.start()
        self.training_seconds, self.first_step = 0.0, state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.training_seconds += time.perf_counter() - self.step_begun
        if state.is_world_process_zero:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        entry = state.log_history[-1]
        more: dict[str, float] = {"tokens": state.global_step * self.tokens_per_step}
        if "loss" in entry:
            more |= {"bits_per_byte": self._bits(entry["loss"]), "tokens_per_second": round(self.speed(state), 1)}
        if "eval_loss" in entry:
            if not math.isfinite(entry["eval_loss"]):
                raise Diverged(f"the validation loss is {entry['eval_loss']:g}", state.global_step)
            more["eval_bits_per_byte"] = self._bits(entry["eval_loss"])
        entry |= more
        if logs is not None:  # which the callbacks that come after this one report
            logs.update(more)
        if not state.is_world_process_zero:
            return
        if "loss" in entry:
            self.progress.update(self.task, status=self._status(entry))
        elif "eval_loss" in entry:
            speed, left = self.speed(state), self.seconds_left(state)
            self._tell(
                f"  step {state.global_step:,}/{state.max_steps:,}  "
                f"validation {entry['eval_bits_per_byte']:.3f} bits/byte",
                f" ({entry['eval_loss']:.3f} nats/token)",
                f"  {speed:,.0f} tokens/s",
                f"  {peak_memory():,.0f} MiB",
                f"  {left:,.0f} s left",
            )

    def _tell(self, *parts: str) -> None:
        """Print a line; where it is too long, its 2nd and 4th part are left out, and no number is broken."""
        line = "".join(parts)
        shown = line if len(line) <= self.console.width else "".join(parts[::2])
        self.console.print(shown, highlight=False, soft_wrap=len(shown) <= self.console.width)

    def _bits(self, nats_per_token: float) -> float:
        return nats_per_token / math.log(2) / self.bytes_per_token

    def speed(self, state: TrainerState) -> float:
        """Tokens per second since this process began, without the time of validation and checkpoints."""
        return (state.global_step - self.first_step) * self.tokens_per_step / max(self.training_seconds, 1e-9)

    def seconds_left(self, state: TrainerState) -> float:
        """For the steps that are missing, at this speed."""
        return (state.max_steps - state.global_step) * self.tokens_per_step / max(self.speed(state), 1e-9)

    def _status(self, entry: dict[str, float]) -> str:
        bits, speed = f"{entry['bits_per_byte']:.3f} bits/byte", f"{entry['tokens_per_second']:,.0f} tokens/s"
        if self.console.width < ROOMY:
            return f"training {bits}  {speed}"
        return f"training loss {entry['loss']:.3f}  {bits}  {speed}  {peak_memory():,.0f} MiB"


def peak_memory() -> float:
    """MiB in use by this process: the accelerator's peak if there is one, otherwise resident memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20
