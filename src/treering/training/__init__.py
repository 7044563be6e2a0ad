"""One training run: phases, loss, atomic checkpoints, resume."""

from treering.training.expert import Backbone, ExpertRecipe, train_expert
from treering.training.run import TrainingResult, train
from treering.training.settings import Training

__all__ = ["Backbone", "ExpertRecipe", "Training", "TrainingResult", "train", "train_expert"]
