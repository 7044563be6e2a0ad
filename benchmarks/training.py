"""How the defaults of training were found: short runs on the demo's Russian corpus, one change at a time.

    python benchmarks/training.py --demo runs/demo              # every trial: hours
    python benchmarks/training.py --demo runs/demo --only batch # those whose name holds a word

Needs a finished (or begun) ``treering demo``, whose substrate and corpus it reads. Prints validation bits per byte and
speed after the same number of tokens; also the speed of the loss with and without logits (--loss).
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from treering.training import Backbone, ExpertRecipe, Training, train_expert
from treering.training.loss import next_token_loss

BASE = {"batch_tokens": 1024, "learning_rate": 2e-3, "warmup": 0.3, "betas": (0.9, 0.95)}
TRIALS: dict[str, dict[str, object]] = {
    "batch 4096": BASE | {"batch_tokens": 4096, "learning_rate": 3e-3, "warmup": 0.02},
    "batch 2048": BASE | {"batch_tokens": 2048, "warmup": 0.02},
    "batch 1024": BASE | {"warmup": 0.02},
    "batch 512": BASE | {"batch_tokens": 512, "learning_rate": 1e-3, "warmup": 0.1},
    "rate 5e-4": BASE | {"learning_rate": 5e-4, "warmup": 0.02},
    "rate 1e-3": BASE | {"learning_rate": 1e-3, "warmup": 0.02},
    "rate 4e-3": BASE | {"learning_rate": 4e-3},
    "warmup 10%": BASE | {"warmup": 0.1},
    "warmup 30%": BASE,
    "betas 0.9, 0.99": BASE | {"betas": (0.9, 0.99)},
    "weight decay 0": BASE | {"weight_decay": 0.0},
    "residual init off": BASE | {"residual_init": False},
}


def trial(demo: Path, settings: dict[str, object], tokens: int) -> tuple[float, float]:
    """Validation bits per byte and tokens/s of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = ExpertRecipe(
            substrate=str(demo / "substrate"),
            data=str(demo / "data-ru"),
            output=f"{scratch}/out",
            backbone=Backbone(preset="small"),
            training=Training.model_validate(settings | {"tokens": tokens, "evaluations": 1}),
        )
        result = train_expert(recipe, Console(file=io.StringIO()))
    return result.validation_bits_per_byte, result.tokens_per_second


def loss_speed() -> list[tuple[str, float]]:
    """Seconds for forward and backward of 4,096 positions over 65,536 tokens, width 256."""
    hidden = torch.randn(4096, 256, requires_grad=True)
    weight = (torch.randn(65_536, 256) * 0.02).requires_grad_()
    labels = torch.randint(0, 65_536, (4096,))
    seconds = []
    for name, loss in (
        ("chunked", lambda: next_token_loss(hidden, weight, labels)),
        ("whole logits", lambda: F.cross_entropy(hidden @ weight.T, labels, reduction="sum")),
    ):
        loss().backward()
        begun = time.perf_counter()
        for _ in range(3):
            loss().backward()
        seconds.append((name, (time.perf_counter() - begun) / 3))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--only", default="", help="run only trials whose name holds this")
    parser.add_argument("--loss", action="store_true", help="time the loss instead")
    options = parser.parse_args()
    console = Console()
    if options.loss:
        for name, seconds in loss_speed():
            console.print(f"{name}: {seconds:.3f} s")
        return
    table = Table("trial", "validation bits/byte", "tokens/s", box=None)
    for name, settings in TRIALS.items():
        if options.only in name:
            bits, speed = trial(options.demo, settings, options.tokens)
            console.print(f"{name}: {bits:.4f} bits/byte, {speed:,.0f} tokens/s")
            table.add_row(name, f"{bits:.4f}", f"{speed:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
