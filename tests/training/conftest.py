from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from treering.backbone import PRESETS, dock, gpt_neox
from treering.training import train
from treering.training.checkpoints import AtomicTrainer


@pytest.fixture
def model(substrate, tokenizer):
    torch.manual_seed(0)
    config = gpt_neox(PRESETS["tiny"])
    config.vocab_size = len(tokenizer)
    return dock(config, substrate, tokenizer)


@pytest.fixture
def run(tokenizer, corpus):
    """``run(model, output, settings)``, silently."""
    return lambda model, output, settings, **kw: train(
        model, tokenizer, corpus, output, settings, console=Console(file=io.StringIO()), **kw
    )


@pytest.fixture
def kill_at():
    """``kill_at(patch, step)``: let the process die as it begins a step, counted from 0."""

    def patched(patch, step):
        def die(trainer, *args, **kwargs):
            if trainer.state.global_step == step:
                raise KeyboardInterrupt
            return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

        patch.setattr(AtomicTrainer, "training_step", die)

    return patched
