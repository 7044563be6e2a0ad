"""What ``treering study reproduction`` reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from treering.corpus import Source
from treering.evaluation.overlap import Name
from treering.recipe import Schema, Seed
from treering.training import Backbone, Training
from treering.training.settings import BlockCount


class ReproductionRecipe(Schema):
    """Texts, sizes and what is searched; the rows and claims are always the same."""

    output: str = Field(description="directory of the reproduction: runs that are there are not made again")
    specialists: dict[Name, Source] = Field(
        min_length=2, description="by name, the text that an expert reads besides its part of the shared one"
    )
    shared: dict[Name, Source] = Field(
        min_length=1, max_length=1, description="by name, the text of which each of those experts reads a part"
    )
    vocab_size: int = Field(2048, ge=512, description="tokens of the tokenizer, which is trained on these texts")
    backbone: Backbone = Backbone()
    depth: BlockCount = Field(6, description="blocks of every model but the shallow one")
    width: BlockCount = Field(2, description="blocks that a stage of growth adds")
    lora: int = Field(8, ge=1, le=2**20, description="rank of the updates in the phases of growth that have them")
    training: Training = Field(description="of every run, in tokens; the rate is searched")
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((8e-3, 1.6e-2, 3.2e-2), min_length=1)
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    validation: float = Field(0.05, gt=0, lt=1, description="share of the documents to measure on")
    calibration: float = Field(0.05, gt=0, lt=1, description="share of the documents to choose rates on")
    documents: int | None = Field(None, ge=2, description="held-out documents of each text; all if not given")

    @field_validator("training")
    @classmethod
    def _in_tokens(cls, training: Training) -> Training:
        if training.tokens is None:
            raise ValueError("say in tokens how much each row reads: all of them read as much")
        return training

    @model_validator(mode="after")
    def _fits(self) -> ReproductionRecipe:
        if taken := self.specialists.keys() & self.shared.keys():
            raise ValueError(f"{min(taken)} is the name of a specialist's text and of the shared one")
        if self.depth % self.width or self.depth <= self.width:
            raise ValueError(f"depth must be two or more stages of width {self.width} blocks (got {self.depth})")
        if self.backbone.layers is not None:
            raise ValueError("backbone.layers is not said here: depth is the blocks of every row")
        return self

    @property
    def tokens(self) -> int:
        """What each row reads."""
        assert self.training.tokens is not None
        return self.training.tokens

    @property
    def texts(self) -> dict[str, Source]:
        """All texts, the shared one last."""
        return self.specialists | self.shared

    @property
    def common(self) -> str:
        """The name of the shared text."""
        return next(iter(self.shared))

    @property
    def depths(self) -> range:
        """Blocks after each stage of growth."""
        return range(self.width, self.depth + 1, self.width)
