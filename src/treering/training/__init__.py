"""One training run: phases, loss, atomic checkpoints, resume.

The names below are imported when they are first used: who measures needs the loss, but neither the Trainer nor peft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treering.lazy import attributes

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

__getattr__ = attributes("treering.training", _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
