"""What a stage of growth costs at different depths, and what the frozen prefix's cache is worth.

    python benchmarks/growth.py speed       # tokens/s and the cache's share by depth, against monolithic: 15 minutes
    python benchmarks/growth.py memory      # peak memory of a stage at depth 2 and 12, against monolithic: 5 minutes
    python benchmarks/growth.py precision   # what a cache in bfloat16 or int8 costs in bits per byte: 10 minutes

Width 256, 8,192 tokens, blocks of 256, two blocks a stage up to depth 12 (``precision``: 6), on a part of the embedded
texts. All figures of one command are taken in one run. What plans reach is the controlled study's to say:
``treering study growth recipes/study.yaml``.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
from pathlib import Path

import torch
from memory import peak
from rich.console import Console
from rich.table import Table

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.corpus import Corpus, Source, prepare, training_texts
from treering.growth import (
    PLANS,
    GrowthResult,
    Plan,
    Stage,
    copied,
    deepen,
    grow,
    monolithic,
    seedling,
    stacked,
)
from treering.training import Backbone, Training

LANGUAGES = ("ru", "zh", "en")
DEPTH = 12
SHAPE = Backbone(preset="medium", context=256)
TRAINING = Training(tokens=1, batch_tokens=8192, evaluations=1, warmup=0.0)


def prepare_place(place: Path) -> None:
    """A tokenizer of 8,192 tokens, a substrate of width 256, and about 100,000 tokens of text."""
    texts = {language: training_texts(f"embedded:{language}", 0.05) for language in LANGUAGES}
    tokenizer = tokenizers.train(texts, vocab_size=8192)
    (place / "substrate").mkdir()
    substrates.build(tokenizer, 256, kind="random").save(place / "substrate", tokenizer)
    sources = [Source(path=f"embedded:{language}", name=language, part="1/16") for language in LANGUAGES]
    prepare(sources, tokenizer, place / "data", block_size=256, validation=0.02)


def run(place: Path, plan: Plan, tokens: int, depth: int = 0, prefix: str = "bfloat16") -> GrowthResult:
    """Grow by ``plan`` from a model of ``depth`` random blocks, in a directory that is forgotten."""
    corpus, tokenizer = Corpus.load(place / "data"), tokenizers.load(place / "substrate")
    torch.manual_seed(0)
    model = seedling(substrates.load(place / "substrate"), tokenizer, SHAPE)
    deepen(model, range(1, depth + 1))
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        settings = TRAINING.model_copy(update={"tokens": tokens})
        return grow(model, tokenizer, corpus, f"{scratch}/out", plan, settings, prefix, console=silent())


def silent() -> Console:
    return Console(file=io.StringIO())


def speed(place: Path, console: Console) -> None:
    epoch = len(Corpus.load(place / "data").train) * 256
    stages = run(place, stacked(DEPTH, 2), DEPTH // 2 * epoch).stages
    whole = run(place, monolithic(DEPTH), epoch // 2).stages[0]
    top = Plan(stages=(Stage(new=f"{DEPTH - 1}-{DEPTH}", share=1.0),))
    recomputed = run(place, top, epoch // 2, DEPTH - 2, "recompute").stages[0]
    table = Table("stage", "depth", "tokens/s", "of depth 2's", "of monolithic's", "cache, s", "of the stage", box=None)
    for name, stage in [
        *((f"{stage.number}, cached", stage) for stage in stages),
        (f"{len(stages)}, recomputed", recomputed),
        ("monolithic", whole),
    ]:
        table.add_row(
            name,
            f"{stage.depth}",
            f"{stage.tokens_per_second:,.0f}",
            f"{stage.tokens_per_second / stages[0].tokens_per_second:.2f}",
            f"{stage.tokens_per_second / whole.tokens_per_second:.2f}",
            f"{stage.prefix_seconds:.1f}",
            f"{stage.prefix_seconds / (stage.prefix_seconds + stage.seconds):.1%}",
        )
    console.print(f"one epoch a stage: {epoch:,} tokens")
    console.print(table)


def memory(place: Path, console: Console) -> None:
    top = Plan(stages=(Stage(new=f"{DEPTH - 1}-{DEPTH}", share=1.0),))
    cases = {
        "no training": None,
        "stage at depth 2": (monolithic(2), 0),
        f"stage at depth {DEPTH}, cached": (top, DEPTH - 2),
        f"default plan, {DEPTH} blocks": (PLANS["copied-12"].plan(), 0),
        f"copied, half of {DEPTH} blocks at once": (copied(DEPTH, DEPTH // 2, base=0.5, head=True), 0),
        f"monolithic, {DEPTH} blocks": (monolithic(DEPTH), 0),
    }
    peaks = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for name, case in cases.items():
            peaks[name] = processes.apply(_peak, [place, case])
    table = Table("run", "peak MiB", "of monolithic's", "of depth 2's", box=None)
    nothing, shallow, *_, whole = peaks.values()
    for name, most in peaks.items():
        table.add_row(name, f"{most:,.0f}", f"{most / whole:.2f}", f"{most / shallow:.2f}")
    console.print(table)
    console.print(f"{nothing:,.0f} MiB are Python's and the libraries' own")


def _peak(place: Path, case: tuple[Plan, int] | None) -> float:
    """MiB at most in this process after a few steps; the see `memory.peak`."""
    if case:
        run(place, case[0], 4 * 8192, case[1])
    return peak()


def precision(place: Path, console: Console, tokens: int = 400_000) -> None:
    """The same plan on the same text from caches of every precision."""
    table = Table("prefix", "validation bits/byte", "above recomputed", box=None)
    reference = None
    for prefix in ("recompute", "float32", "bfloat16", "int8"):
        bits = run(place, stacked(6, 2), tokens, prefix=prefix).stages[-1].validation_bits_per_byte
        reference = reference or bits
        table.add_row(prefix, f"{bits:.5f}", f"{bits - reference:+.5f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "precision"))
    what, console = parser.parse_args().what, Console(width=160, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        prepare_place(Path(scratch))
        {"speed": speed, "memory": memory, "precision": precision}[what](Path(scratch), console)


if __name__ == "__main__":
    main()
