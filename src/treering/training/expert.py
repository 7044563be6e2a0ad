"""One expert: a fresh backbone docked on a substrate and trained on one corpus (paper section 4's specialists)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveInt
from rich.console import Console
from transformers import set_seed

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import Preset, dock, gpt_neox, preset
from treering.recipe import Schema
from treering.tokenizer import load as load_tokenizer
from treering.training.run import TrainingResult, scale_residual_outputs, train
from treering.training.settings import Training


class Backbone(Schema):
    """A preset, with whatever of it shall differ; vocabulary and width are the substrate's."""

    preset: str = "small"
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    context: PositiveInt | None = None


class ExpertRecipe(Schema):
    """What ``treering train`` reads."""

    substrate: str = Field(description="directory of the substrate; it holds the tokenizer too")
    data: str = Field(description="directory of the prepared corpus")
    output: str = Field(description="directory of the finished expert")
    backbone: Backbone = Backbone()
    training: Training = Training(epochs=1)


def train_expert(recipe: ExpertRecipe, console: Console | None = None) -> TrainingResult:
    """Dock a backbone on the recipe's substrate, train it on its corpus, and leave a plain checkpoint in its output.

    Raises:
        TreeringError: see ``treering.backbone.dock`` and ``treering.training.train``.
    """
    tokenizer = load_tokenizer(recipe.substrate)
    substrate = substrates.load(recipe.substrate)
    corpus = corpora.Corpus.load(recipe.data)
    set_seed(recipe.training.seed)
    model = dock(gpt_neox(_shape(recipe.backbone, substrate)), substrate, tokenizer)
    if recipe.training.residual_init:
        scale_residual_outputs(model)
    origin: dict[str, Any] = {
        "substrate": substrate.fingerprint,
        "corpus": corpus.fingerprint,
        "sources": [source.name for source in corpus.manifest.sources],
        "backbone": model.config.to_dict(),
    }
    return train(model, tokenizer, corpus, os.fspath(recipe.output), recipe.training, origin, console)


def _shape(backbone: Backbone, substrate: substrates.Substrate) -> Preset:
    shape = preset(backbone.preset)
    vocab_size, d_model = substrate.matrix.shape
    chosen = {name: getattr(backbone, name) for name in ("layers", "heads", "context")}
    changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if d_model != shape.d_model and "heads" not in changes:
        changes["heads"] = max(1, d_model // (shape.d_model // shape.heads))  # keep the width of a head
    return replace(shape, d_model=d_model, vocab_size=vocab_size, **changes)
