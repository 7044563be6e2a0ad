"""How a training run goes, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from treering.recipe import Schema, Seed

Schedule = Literal["cosine", "linear", "constant"]
Keep = Literal["best", "last"]
"""Which weights a run leaves: those of its lowest validation, or of its last step."""
MOST_BLOCKS = 1_000
"""Of a stack; far beyond the deepest that anybody trains here."""

Beta = Annotated[float, Field(ge=0, lt=1)]
Tokens = Annotated[int, Field(gt=0, le=10**15)]
BlockCount = Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
Steps = Annotated[int, Field(gt=0, le=10**9)]


Tracker = Literal["tensorboard", "trackio", "wandb"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Training(Schema):
    """One run's optimiser, schedule and bookkeeping; the defaults were found by trying (docs/training.md)."""

    tokens: Tokens | None = Field(None, description="tokens to train on; or give epochs")
    epochs: float | None = Field(None, gt=0, le=1e6, description="passes over the corpus; or give tokens")
    batch_tokens: Tokens = Field(1024, description="tokens per optimiser step, over all processes")
    micro_batch_tokens: Tokens = Field(8192, description="at most so many per forward pass and process")
    learning_rate: float = Field(3e-3, gt=0, le=1e9)
    schedule: Schedule = "cosine"
    warmup: float = Field(0.25, ge=0, lt=1, description="share of the steps")
    final_rate: float = Field(
        0.1, ge=0, le=1, description="last learning rate, as a share of the highest; not of a constant one"
    )
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(0.1, ge=0, le=1e9, description="on matrices; never on norms and biases")
    gradient_clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 for none")
    residual_init: bool = Field(True, description="scale the blocks' output matrices by 1/√(2·layers) at the start")
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluations: Steps = Field(10, description="how often validation bits per byte are measured in the run")
    keep: Keep | None = Field(
        None, description="weights of the best validation or of the last step: best if not given, last of what grows"
    )
    patience: Steps | None = Field(None, description="end early after so many validations without gain")
    checkpoint_steps: Steps = Field(500, description="most steps between resumable checkpoints")
    checkpoint_minutes: float = Field(10, gt=0, description="most minutes between them")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_listed)] = Field(
        (), description="tensorboard, trackio, wandb: one, or a list"
    )
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _without_tensorboard(cls, values: Any) -> Any:
        """Records of earlier versions say that it is off."""
        if not isinstance(values, dict) or "tensorboard" not in values:
            return values
        if values["tensorboard"] is not False:
            raise ValueError("tensorboard: true is said as report_to: tensorboard now")
        return {name: value for name, value in values.items() if name != "tensorboard"}

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.tokens is None) == (self.epochs is None):
            raise ValueError("give either tokens or epochs")
        return self


class ExpertTraining(Training):
    """Of an expert, whose length is chosen from the corpus and the parameters where neither field gives it."""

    @model_validator(mode="after")
    def _one_length(self) -> ExpertTraining:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError("give either tokens or epochs")
        return self
