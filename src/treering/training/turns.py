"""Groups of parameters that train by turns: block-coordinate descent with Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ByTurns(TrainerCallback):
    """Lets one group at a time require gradients, each for so many steps; whatever is in no group always trains.

    Only the group whose turn it is has gradients (as in BAdam, arXiv 2404.02827). Each keeps its optimiser's state
    between its turns, in the host's memory. Whose turn it is follows from the number of the step, so a run that goes on
    needs to know nothing else.

    Args:
        groups: parameters, in the order of their turns.
        steps: length of a turn.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], steps: int) -> None:
        self.groups, self.steps = groups, steps

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert optimizer is not None
        turn = state.global_step // self.steps % len(self.groups)
        for number, group in enumerate(self.groups):
            for parameter in group:
                parameter.requires_grad_(number == turn)
                kept, device = optimizer.state.get(parameter, {}), parameter.device if number == turn else "cpu"
                for name, value in kept.items():
                    if name != "step":  # a scalar, which Adam keeps where it wants it
                        kept[name] = value.to(device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for parameter in (parameter for group in self.groups for parameter in group):
            parameter.requires_grad_(True)
