"""Checkpoints that are complete or not there, on top of ``transformers.Trainer``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from treering.output import sync_to_disk


class AtomicTrainer(Trainer):
    """A Trainer whose checkpoint folders appear by one rename.

    Trainer writes a checkpoint file by file into its final folder, so a kill in the middle leaves a folder that looks
    like the newest checkpoint and is not whole. Here it writes into ``.partial``, which no resume looks at.
    """

    _staging: str | None = None

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load through the model's class, which knows that some families are saved under other tensor names.

        Trainer takes the names in the file as they stand: a GPT-NeoX head, saved as ``embed_out``, would stay at its
        random start with no more than a warning.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # sharded checkpoints, in the wrapper's own format
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            own: Any = self.model
            own.load_state_dict(type(own).from_pretrained(resume_from_checkpoint, dtype=own.dtype).state_dict())
