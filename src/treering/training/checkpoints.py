"""Checkpoints that are complete or not there, on top of ``transformers.Trainer``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from treering.output import sync_to_disk

TRAINED = "trained.safetensors"
"""The file of a checkpoint that holds the parameters that train."""


class AtomicTrainer(Trainer):
    """A Trainer whose checkpoint folders appear by one rename.

    Trainer writes a checkpoint file by file into its final folder, so a kill in the middle leaves a folder that looks
    like the newest checkpoint and is not whole. Here it writes into ``.partial``, which no resume looks at. And a
    checkpoint holds what trains, not the frozen rest: its size does not grow with a grown model's depth.

    Attributes:
        moments: by parameter's name, where the optimiser begins; see ``treering.training.run.Moments``.
    """

    moments: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})
    _staging: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.model, nn.Module)
        # What trains by turns does not require gradients at all times.
        self._trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every held-out block counts, although training drops batches that are not full."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        staging = run / ".partial"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = os.fspath(staging)
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = staging / f"checkpoint-{self.state.global_step}"
            final = run / written.name
            sync_to_disk(written)
            if not final.exists():
                written.rename(final)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(os.fspath(run), save_total_limit=self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what trains; the rest is what the run began with, and is in its owner's hands."""
        if state_dict is not None:  # of FSDP or DeepSpeed, in the wrapper's own format
            super()._save(output_dir, state_dict)
            return
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._trained}, directory / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        with torch.no_grad():
            for name, parameter in self._trained:
                parameter.copy_(saved[name])

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
