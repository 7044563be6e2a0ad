"""A run's status on the disk, for ``treering watch``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from treering.output import unfinished_of
from treering.training.length import lowest
from treering.training.progress import Display
from treering.training.status import Part, Status, Validation, announce

SECONDS = 1.0
"""At least, between two writings."""


class Announcement(TrainerCallback):
    """Writes where the run stands: after a step, at most once a second, after each validation, and where it ends.

    Args:
        display: knows the speed.
    """

    def __init__(self, part: Part, display: Display) -> None:
        self._part, self._display = part, display
        self._written = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() - self._written >= SECONDS:
            self._write(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        self._written = time.monotonic()
        losses = [entry for entry in state.log_history if "loss" in entry]
        validations = [entry for entry in state.log_history if "eval_loss" in entry]
        best = lowest(validations)
        status = Status(
            stage=self._part.stage,
            stages=self._part.stages,
            step=state.global_step,
            steps=state.max_steps,
            tokens=state.global_step * self._display.tokens_per_step,
            tokens_per_second=self._display.speed(state),
            seconds_left=self._display.seconds_left(state),
            loss=losses[-1]["loss"] if losses else None,
            bits_per_byte=losses[-1]["bits_per_byte"] if losses else None,
            validation=_validation(validations[-1]) if validations else None,
            best=_validation(best) if best else None,
            updated=time.time(),
        )
        announce(unfinished_of(self._part.output), status)


def _validation(entry: Mapping[str, Any]) -> Validation:
    return Validation(step=entry["step"], bits_per_byte=entry["eval_bits_per_byte"])
