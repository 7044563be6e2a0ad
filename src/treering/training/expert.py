"""One expert: a fresh backbone docked on a substrate and trained on one corpus (paper section 4's specialists)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator
from rich.console import Console
from transformers import PreTrainedModel, set_seed

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import Preset, dock, gpt_neox, preset
from treering.errors import TreeringError
from treering.recipe import Schema
from treering.tokenizer import load as load_tokenizer
from treering.training.length import chosen_length, too_few
from treering.training.run import TrainingResult, scale_residual_outputs, train
from treering.training.settings import BlockCount, ExpertTraining, Training


class Backbone(Schema):
    """A preset, with whatever of it shall differ; the vocabulary is the substrate's."""

    preset: str = "small"
    d_model: int | None = Field(None, ge=1, le=2**20)
    layers: BlockCount | None = None
    heads: int | None = Field(None, ge=1, le=2**16)
    context: int | None = Field(None, ge=1, le=2**24)

    def shape(self) -> Preset:
        """The preset with the changes."""
        changes = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(preset(self.preset), **changes)


class ExpertRecipe(Schema):
    """What ``treering train`` reads."""

    substrate: str = Field(description="directory of the substrate; it holds the tokenizer too")
    data: str = Field(description="directory of the prepared corpus")
    output: str = Field(description="directory of the finished expert")
    backbone: Backbone = Backbone()
    training: ExpertTraining = ExpertTraining()

    @field_validator("training", mode="before")
    @classmethod
    def _of_any_run(cls, value: Any) -> Any:
        """From Python, the settings of any run."""
        return value.model_dump() if isinstance(value, Training) else value


def train_expert(recipe: ExpertRecipe, console: Console | None = None) -> TrainingResult:
    """Dock a backbone on the recipe's substrate, train it on its corpus, and leave a plain checkpoint in its output.

    Raises:
        TreeringError: see ``treering.backbone.dock`` and ``treering.training.train``.
    """
    substrates.require_substrate(recipe.substrate)
    tokenizer = load_tokenizer(recipe.substrate)
    substrate = substrates.load(recipe.substrate)
    corpus = corpora.Corpus.load(recipe.data, console)
    set_seed(recipe.training.seed)
    model = dock(gpt_neox(stand_on(substrate, recipe.backbone.shape())), substrate, tokenizer)
    if recipe.training.residual_init:
        scale_residual_outputs(model)
    origin: dict[str, Any] = {
        "substrate": substrate.fingerprint,
        "corpus": corpus.fingerprint,
        "sources": [source.name for source in corpus.manifest.sources],
        "data": corpus.manifest.model_dump(mode="json"),
        "backbone": model.config.to_dict(),
    }
    settings = Training.model_validate(recipe.training.model_dump() | _length(recipe, model, corpus, console))
    return train(model, tokenizer, corpus, os.fspath(recipe.output), settings, origin, console)


def _length(
    recipe: ExpertRecipe, model: PreTrainedModel, corpus: corpora.Corpus, console: Console | None
) -> dict[str, int]:
    """The tokens to read, if the recipe leaves that open; a short run that it asks for is told."""
    console, given = console or Console(), recipe.training
    available = len(corpus.train) * corpus.manifest.block_size
    if given.tokens is None and given.epochs is None:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        tokens, told = chosen_length(trained, available)
        console.print(f"  reading {told}", highlight=False)
        return {"tokens": tokens}
    tokens = given.tokens or round((given.epochs or 0) * available)
    if short := too_few(tokens // given.batch_tokens):
        console.print(f"  warning: {short}", highlight=False)
    return {}


def stand_on(substrate: substrates.Substrate, shape: Preset) -> Preset:
    """The shape with the substrate's vocabulary; its width must be the substrate's already."""
    vocab_size, d_model = substrate.matrix.shape
    if d_model != shape.d_model:
        raise TreeringError(
            f"The substrate is {d_model} wide, the backbone {shape.d_model}. Build the substrate with --d-model "
            f"{shape.d_model}, choose a preset of width {d_model}, or give backbone.d_model in the recipe."
        )
    return replace(shape, vocab_size=vocab_size)
