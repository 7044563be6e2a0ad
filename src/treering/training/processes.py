"""The processes of a run, one or many, before and beside the Trainer that they share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from treering.errors import TreeringError


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def processes() -> PartialState:
    """This process among those that ``torchrun`` started; alone, the only one."""
    return PartialState(cpu=on_cpu())


def claim(unfinished: Path, file: str, run: Mapping[str, Any]) -> None:
    """Make the directory ``unfinished`` this run's own, by a ``file`` that says what the run is, or find that it is.

    Raises:
        TreeringError: it is another run's; nothing was touched.
    """
    content, path = json.dumps(run, indent=2, sort_keys=True), unfinished / file
    if path.exists() and path.read_text() != content:
        raise TreeringError(
            f"{unfinished} holds an unfinished run of another recipe (see {file} there). Finish it with that recipe, "
            "choose another output, or delete it."
        )
    processes().wait_for_everyone()
    if processes().is_main_process:
        unfinished.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    processes().wait_for_everyone()
