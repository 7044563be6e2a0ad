"""One expert: a backbone on a substrate, trained on one corpus (paper section 4's specialists).

It begins afresh, or as an expert that exists: several who go on from one that read what they share, each with its own
text, join better than those from nothing (Branch-Train-Merge's seed phase, arXiv 2208.03306; docs/joining.md).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from treering import corpus as corpora
from treering import substrate as substrates
from treering.backbone import Preset, context_length, dock, embedding, gpt_neox, grown_on, preset, standing
from treering.errors import TreeringError
from treering.location import name_of
from treering.recipe import Schema
from treering.tokenizer import identity
from treering.tokenizer import load as load_tokenizer
from treering.training.length import chosen_length, too_few
from treering.training.loss import Lesson
from treering.training.run import TrainingResult, scale_residual_outputs, train, weights_digest
from treering.training.settings import BlockCount, ExpertTraining, Training

SHARE = 0.5
"""Of a teacher in the loss, where none is given: the best of 0.25, 0.5, 0.75 and 0.9 (docs/joining.md)."""
SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Of a configuration, what a recipe's backbone says."""


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
    start: str | None = Field(None, description="expert on the same substrate to go on from: a directory, or hub:NAME")
    teacher: str | None = Field(None, description="model or composition of the same tokenizer to learn from, too")
    teacher_share: float | None = Field(None, gt=0, le=1, description=f"of the teacher in the loss; {SHARE}")
    backbone: Backbone = Backbone()
    training: ExpertTraining = ExpertTraining()

    @model_validator(mode="after")
    def _of_somebody(self) -> ExpertRecipe:
        if self.teacher is None and self.teacher_share is not None:
            raise ValueError("teacher_share is given, and no teacher")
        return self

    @field_validator("training", mode="before")
    @classmethod
    def _of_any_run(cls, value: Any) -> Any:
        """From Python, the settings of any run."""
        return value.model_dump() if isinstance(value, Training) else value


def train_expert(recipe: ExpertRecipe, console: Console | None = None) -> TrainingResult:
    """Dock a backbone on the recipe's substrate, or take the expert that it starts from; train it on the recipe's
    corpus, and leave a plain checkpoint in its output.

    Raises:
        TreeringError: the start is no expert on this substrate, or has another backbone than the recipe says; the
            teacher has another tokenizer, or a shorter context than the corpus' blocks; see also
            ``treering.backbone.dock``, ``treering.composition.load_model`` and ``treering.training.train``.
    """
    substrates.require_substrate(recipe.substrate)
    tokenizer = load_tokenizer(recipe.substrate)
    substrate = substrates.load(recipe.substrate)
    corpus = corpora.Corpus.load(recipe.data, console)
    set_seed(recipe.training.seed)
    if recipe.start is None:
        model = dock(gpt_neox(stand_on(substrate, recipe.backbone.shape())), substrate, tokenizer)
        if recipe.training.residual_init:
            scale_residual_outputs(model)
        began = dict[str, Any]()
    else:
        model = _started(recipe, recipe.start, substrate)
        # A directory may hold another model by the time a run goes on.
        began = {"start": name_of(recipe.start), "weights": weights_digest(model)}
    lesson = None
    if recipe.teacher is not None:
        lesson = Lesson(_teacher(recipe.teacher, tokenizer, corpus), recipe.teacher_share or SHARE)
        known = {"name": name_of(recipe.teacher), "weights": weights_digest(lesson.teacher), "share": lesson.share}
        began |= {"teacher": known}
    origin: dict[str, Any] = {
        "substrate": substrate.fingerprint,
        "corpus": corpus.fingerprint,
        "sources": [source.name for source in corpus.manifest.sources],
        "data": corpus.manifest.model_dump(mode="json"),
        "backbone": model.config.to_dict(),
        **began,
    }
    settings = Training.model_validate(recipe.training.model_dump() | _length(recipe, model, corpus, console))
    return train(model, tokenizer, corpus, os.fspath(recipe.output), settings, origin, console, lesson)


def _started(recipe: ExpertRecipe, place: str, substrate: substrates.Substrate) -> PreTrainedModel:
    """The expert in ``place``, to go on from: all of it trains that trained in an expert from nothing.

    Raises:
        TreeringError: see `train_expert`.
    """
    from treering.composition import load_model, require_single  # whose rules are fitted with this package's loss

    model = require_single(place, load_model(place, dtype=torch.float32))  # what trains in less learns little
    found = standing(model.config)
    if found is None:
        raise TreeringError(
            f"{place} stands on no substrate, so it cannot start an expert on {recipe.substrate}. Grow a branch on it "
            f"instead: treering grow branch --model {place} --data {recipe.data} -o {recipe.output}"
        )
    if found.fingerprint != substrate.fingerprint:
        raise TreeringError(
            f"{place} stands on another substrate than {recipe.substrate} ({found.fingerprint[:12]}…, not "
            f"{substrate.fingerprint[:12]}…). Give the substrate that it was trained on, or an expert on this one."
        )
    if "backbone" in recipe.model_fields_set:
        asked = gpt_neox(recipe.backbone.shape())
        values = {name: (getattr(model.config, name, None), getattr(asked, name)) for name in SHAPE}
        if wrong := [f"{name} {own}, not {its}" for name, (own, its) in values.items() if own != its]:
            raise TreeringError(
                f"{place} has another backbone than the recipe says: {', '.join(wrong)}. Leave the backbone out of the "
                "recipe, or give that expert's."
            )
    weight = embedding(model).weight
    if substrate.frozen and not torch.equal(weight, substrate.matrix):
        raise TreeringError(
            f"The embedding of {place} is not the substrate that it names: it was changed, or rounded. Copy it again."
        )
    weight.requires_grad_(not substrate.frozen)
    if grown_on(model.config):
        model.config.treering_trunk = None  # no block stays what it shared
    model.config._name_or_path = ""  # what is recorded of it may be published
    return model.train()


def _teacher(place: str, tokenizer: PreTrainedTokenizerFast, corpus: corpora.Corpus) -> PreTrainedModel:
    """The model in ``place``, to learn from what it says of the corpus.

    Raises:
        TreeringError: see `train_expert`.
    """
    from treering.composition import load_model
    from treering.composition.vocabulary import require_covered, tokenizer_of

    teacher = load_model(place)
    own, asked = identity(tokenizer_of(place, teacher)), identity(tokenizer)
    if own != asked:
        raise TreeringError(
            f"The teacher {place} has another tokenizer than the substrate ({own}, not {asked}), so what it says is of "
            "other tokens. Give a teacher of the same tokenizer."
        )
    require_covered(teacher.config, tokenizer)
    context, block = context_length(teacher.config), corpus.manifest.block_size
    if context < block:
        raise TreeringError(
            f"The teacher {place} reads at most {context} tokens at once, and the corpus is packed in blocks of "
            f"{block}. Prepare the corpus with a --block-size of at most that, or give another teacher."
        )
    return teacher.requires_grad_(False).eval()


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
    if recipe.start is None and (short := too_few(tokens // given.batch_tokens)):
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
