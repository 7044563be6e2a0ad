"""Checkpoints that are complete or not there, on top of ``transformers.Trainer``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from treering.errors import TreeringError
from treering.output import staged_directory, write_file
from treering.seal import seal
from treering.training.best import BEST, Best
from treering.training.divergence import Diverged, not_finite
from treering.training.processes import decided, in_any
from treering.training.unfinished import checkpoints, remove

TRAINED, LOSS = "trained.safetensors", "loss.json"
"""Files of a checkpoint: the parameters that train; the losses since the last entry of the log."""


class AtomicTrainer(Trainer):
    """A Trainer whose checkpoint folders appear by one rename, sealed, and hold finite numbers only.

    Trainer writes a checkpoint file by file into its final folder, so a kill in the middle leaves a folder that looks
    like the newest checkpoint and is not whole. Here it writes into a staging directory, which no resume looks at. And
    a checkpoint holds what trains, not the frozen rest: its size does not grow with a grown model's depth.

    Attributes:
        moments: by parameter's name, where the optimiser begins; see ``treering.training.run.Moments``.
        best: what trains at the lowest validation so far, if that is kept; see `keep_best`.
    """

    moments: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})
    best: Best | None = None
    _staging: str | None = None
    _resumed: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.model, nn.Module)
        # What trains by turns does not require gradients at all times.
        self._trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.add_callback(_RunningLoss(self))

    def require_finite(self) -> None:
        """Check what trains.

        Raises:
            Diverged: a parameter is not finite; in all processes.
        """
        name = not_finite(self._trained)
        if in_any(name is not None):
            raise Diverged(f"the parameter {name or 'of another process'} is not finite", self.state.global_step)

    def keep_best(self) -> None:
        """Keep what trains from the lowest validation, for ``best.restore`` at the end.

        Raises:
            TreeringError: FSDP or DeepSpeed cut what trains in pieces.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise TreeringError(
                "Under FSDP and DeepSpeed the weights of the best validation cannot be kept. Say training.keep: last."
            )
        self.best = Best(self._trained)
        self.add_callback(self.best)

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every held-out block counts, although training drops batches that are not full."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer's own; it asks before each step of the optimiser, which is not taken with what is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        bad = [
            f"{what} is {float(value):g}"
            for what, value in (("the loss", self._tr_loss), ("the gradient's norm", norm))
            if not torch.isfinite(torch.as_tensor(value))
        ]
        if in_any(bool(bad)):
            raise Diverged(bad[0] if bad else "the loss of another process is not finite", self.state.global_step + 1)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        if decided(final.exists):
            return
        self.require_finite()
        losses = self._losses()
        with ExitStack() as stack:
            staging = decided(lambda: stack.enter_context(staged_directory(final)))
            self._staging = os.fspath(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                written = staging / final.name
                for path in written.iterdir():
                    path.rename(staging / path.name)
                written.rmdir()
                write_file(staging / LOSS, json.dumps(losses))
                seal(staging)
        if self.args.should_save:
            for older in checkpoints(run)[: -(self.args.save_total_limit or 1)]:
                remove(older)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what trains; the rest is what the run began with, and is in its owner's hands."""
        if state_dict is not None:  # of FSDP or DeepSpeed, in the wrapper's own format
            super()._save(output_dir, state_dict)
            return
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._trained}, directory / TRAINED)
        if self.best:
            self.best.save(directory, self.state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed = resume_from_checkpoint
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoint = Path(resume_from_checkpoint)
        saved = self._of_this_model(checkpoint / TRAINED)
        with torch.no_grad():
            for name, parameter in self._trained:
                parameter.copy_(saved[name])
        if self.best:
            self.best.load(self._of_this_model(checkpoint / BEST) if (checkpoint / BEST).exists() else saved)

    def _of_this_model(self, file: Path) -> dict[str, Tensor]:
        """What trains, from a file of a checkpoint.

        Raises:
            TreeringError: it holds something else.
        """
        saved = load_file(file)
        if {name: tensor.shape for name, tensor in saved.items()} != {name: p.shape for name, p in self._trained}:
            raise TreeringError(f"{file.parent} is of another model. Delete it to go on from an older one.")
        return saved

    def _losses(self) -> dict[str, float]:
        """The sum of the losses that the log does not know yet, the mean of all processes, and since which step."""
        total = self.accelerator.reduce(self._tr_loss.clone(), "mean")
        return {"sum": float(total), "since": self._globalstep_last_logged}

    def restore_losses(self) -> None:
        """Go on with the sum of losses of the checkpoint, so that the log is as if the run had never stopped."""
        if self._resumed is not None:
            saved = json.loads((Path(self._resumed) / LOSS).read_text())
            self._tr_loss += saved["sum"]
            self._globalstep_last_logged = saved["since"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own, with what `moments` knows of parameters that have trained before."""
        optimiser = super().create_optimizer(model)
        for name, parameter in self._trained:
            if name in self.moments:
                optimiser.state[parameter] = {key: value.clone() for key, value in self.moments[name].items()}
        return optimiser

    def final_moments(self) -> dict[str, dict[str, Tensor]]:
        """What the optimiser knows of every parameter that trains, by name."""
        assert self.optimizer is not None
        state = self.optimizer.state
        return {
            name: {key: value.detach().cpu() for key, value in state[p].items()}
            for name, p in self._trained
            if p in state
        }


class _RunningLoss(TrainerCallback):
    """Restores the sum of losses where the Trainer has just set it to zero."""

    def __init__(self, trainer: AtomicTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.restore_losses()
