"""One training run: phases, loss, atomic checkpoints, resume.

The names below are imported when they are first used: who measures needs the loss, but neither the Trainer nor peft.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.training.expert import Backbone, ExpertRecipe, train_expert
    from treering.training.run import TrainingResult, train
    from treering.training.settings import Training

__all__ = ["Backbone", "ExpertRecipe", "Training", "TrainingResult", "train", "train_expert"]

_HOMES = {
    "Backbone": "expert",
    "ExpertRecipe": "expert",
    "Training": "settings",
    "TrainingResult": "run",
    "train": "run",
    "train_expert": "expert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'treering.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"treering.training.{_HOMES[name]}"), name)
