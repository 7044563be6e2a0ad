"""How the defaults of training were found: short runs on the demo's Russian corpus, measured on its calibration pages.

    python benchmarks/training.py --demo runs/demo                                # every trial: hours
    python benchmarks/training.py --demo runs/demo --only learning_rate warmup    # of these alone
    python benchmarks/training.py --loss                                          # speed with and without logits

One thing is tried after the other, the rest at the best so far (the defaults, to begin). Needs a finished (or begun)
``treering demo``, whose substrate and corpus it reads. Prints bits per byte on the pages set apart for calibration and
speed, after the same number of tokens; the pages that results are reported on are not read.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from transformers import set_seed

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import dock, gpt_neox
from treering.corpus import Corpus
from treering.training import Backbone, Training, train
from treering.training.expert import stand_on
from treering.training.loss import next_token_loss
from treering.training.run import scale_residual_outputs

SEARCH: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1.5e-3, 3e-3, 6e-3, 1.2e-2),
    "warmup": (0.1, 0.25, 0.5),
    "batch_tokens": (512, 1024, 2048),
    "betas": ((0.9, 0.95), (0.9, 0.99)),
    "weight_decay": (0.0, 0.1),
    "residual_init": (True, False),
}


def trial(demo: Path, settings: Training) -> tuple[float, float]:
    """Bits per byte on the calibration pages and tokens/s of one run."""
    substrate, tokenizer = substrates.load(demo / "substrate"), tokenizers.load(demo / "substrate")
    corpus = Corpus.load(demo / "data-ru")
    set_seed(settings.seed)
    model = dock(gpt_neox(stand_on(substrate, Backbone(preset="small").shape())), substrate, tokenizer)
    if settings.residual_init:
        scale_residual_outputs(model)
    apart = replace(corpus, validation=corpus.calibration)
    with tempfile.TemporaryDirectory() as scratch:
        result = train(model, tokenizer, apart, f"{scratch}/out", settings, console=Console(file=io.StringIO()))
    return result.validation_bits_per_byte, result.tokens_per_second


def search(demo: Path, settings: Training, names: Sequence[str], console: Console) -> Training:
    """The best settings, of those that `SEARCH` names one thing after the other."""
    known: dict[str, float] = {}
    for name in names:
        bits = {}
        for value in SEARCH[name]:
            tried = settings.model_copy(update={name: value})
            if (key := tried.model_dump_json()) not in known:
                known[key], speed = trial(demo, tried)
                words = ", ".join(f"{field}={getattr(tried, field)}" for field in SEARCH)
                console.print(f"{words}: {known[key]:.4f} bits/byte, {speed:,.0f} tokens/s", highlight=False)
            bits[value] = known[key]
        settings = settings.model_copy(update={name: min(bits, key=bits.__getitem__)})
    return settings


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
    parser.add_argument("--only", nargs="+", choices=SEARCH, default=list(SEARCH), help="what is tried")
    parser.add_argument("--loss", action="store_true", help="time the loss instead")
    options = parser.parse_args()
    console = Console(width=200)
    if options.loss:
        for name, seconds in loss_speed():
            console.print(f"{name}: {seconds:.3f} s")
        return
    best = search(options.demo, Training(tokens=options.tokens, evaluations=1), options.only, console)
    console.print("best: " + ", ".join(f"{name}={getattr(best, name)}" for name in options.only), highlight=False)


if __name__ == "__main__":
    main()
