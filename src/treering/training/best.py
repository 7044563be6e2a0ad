"""What trains, as it was at the lowest validation so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from treering.training.length import lowest

BEST = "best.safetensors"
"""The file of a checkpoint that holds it, where that is not the checkpoint's own step."""


class Best(TrainerCallback):
    """Keeps a copy of what trains, in the host's memory, from the validation that has been the lowest.

    Every checkpoint has it too, in the same rename as the rest: whoever goes on from one knows what was the best until
    then, and finds again what was better later. The Trainer's own ``load_best_model_at_end`` would have a checkpoint
    written at each validation, and remembers it by its path alone.

    Args:
        parameters: what trains, by name.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._parameters = parameters
        self._kept: Mapping[str, Tensor] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if _is_best(state):
            self._kept = {name: p.detach().to("cpu", copy=True) for name, p in self._parameters}

    def save(self, checkpoint: Path, state: TrainerState) -> None:
        """Write what is kept into a checkpoint, unless that is nothing yet, or the checkpoint's own step."""
        if lowest(state.log_history) and not _is_best(state):
            save_file(dict(self._kept), checkpoint / BEST)

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Go on with what a checkpoint kept."""
        self._kept = kept

    def restore(self) -> None:
        """Let the parameters be what is kept."""
        with torch.no_grad():
            for name, parameter in self._parameters:
                parameter.copy_(self._kept[name])


def _is_best(state: TrainerState) -> bool:
    best = lowest(state.log_history)
    return best is not None and best["step"] == state.global_step
