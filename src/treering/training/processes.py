"""The processes of a run, one or many, before and beside the Trainer that they share."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def processes() -> PartialState:
    """This process among those that ``torchrun`` started; alone, the only one."""
    return PartialState(cpu=on_cpu())
