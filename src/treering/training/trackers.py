"""Experiment trackers: the Trainer's own integrations, each going on in the log of a run that was stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from treering.errors import TreeringError
from treering.output import write_file
from treering.training.settings import Tracker
from treering.training.status import Part

PROJECT = "treering"
"""The name under which trackers collect runs, unless WANDB_PROJECT says another."""

RUN_ID = "run-id"
"""The file of an unfinished run by which trackers know it again."""


def require_trackers(names: Sequence[Tracker]) -> None:
    """Check that what a run reports to is installed.

    Raises:
        TreeringError: a package is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise TreeringError(
            f"training.report_to needs the package {missing[0]}: pip install 'treering[{','.join(missing)}]', or leave "
            "it out of the recipe."
        )


def trackers(names: Sequence[Tracker], part: Part, unfinished: Path) -> list[TrainerCallback]:
    """What reports a run to each of the trackers, for the first of several processes.

    Args:
        unfinished: where the run keeps what it goes on from, and by what it is known again.
    """
    if not names:
        return []
    number = _run_id(unfinished / RUN_ID)
    directory = part.output.with_name(f"{part.output.name}.tensorboard")
    make: dict[Tracker, Callable[[], TrainerCallback]] = {
        "tensorboard": lambda: _TensorBoard(directory / f"stage-{part.stage}" if part.stage else directory),
        "trackio": lambda: _Trackio(f"{part.name}-{number}"),
        "wandb": lambda: _Wandb(part.name, number),
    }
    return [make[name]() for name in dict.fromkeys(names)]


def _run_id(path: Path) -> str:
    """Eight hexadecimal digits that a run keeps as long as it is unfinished."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        with path.open("rb") as file:
            known = file.read(9).decode("ascii")
        if re.fullmatch(r"[0-9a-f]{8}", known):
            return known
    made = secrets.token_hex(4)
    write_file(path, made)
    return made


class _TensorBoard(TensorBoardCallback):
    """Goes on in the same directory; what a killed process wrote after the checkpoint is hidden, and written again."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tb_writer = self._SummaryWriter(os.fspath(self._directory), purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)


class _Trackio(TrackioCallback):
    """Goes on with the run of the same name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        args.run_name, args.project = self._name, PROJECT
        super().setup(args, state, model, **kwargs)


class _Wandb(WandbCallback):
    """Goes on with the run of the same number; ends it when the training does, since the next stage is another run."""

    def __init__(self, name: str, number: str) -> None:
        super().__init__()
        self._name, self._number = name, number

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._wandb.init(project=project, name=self._name, id=self._number, resume="allow")
        super().setup(args, state, model, **kwargs)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_train_end(args, state, control, model, processing_class, **kwargs)
        self._wandb.finish()
