"""What a stage of growth costs at different depths, and what the frozen prefix's cache is worth.

    python benchmarks/growth.py speed       # tokens/s and the cache's share by depth, against monolithic: 15 minutes
    python benchmarks/growth.py memory      # peak memory of a stage at depth 2 and 12, against monolithic: 5 minutes
    python benchmarks/growth.py precision   # what a cache in bfloat16 or int8 costs in bits per byte: 10 minutes
    python benchmarks/growth.py gap --seeds 0 1          # the default plan against shallow and monolithic: 3 hours
    python benchmarks/growth.py clock --tokens 4000000   # twelve blocks in the same time, against both: an hour

Width 256, 8,192 tokens, blocks of 256, two blocks a stage up to depth 12 (``precision``: 6), on a part of the embedded
texts. All figures of one command are taken in one run. ``gap``, ``clock``: width 64, 1,024 tokens, Russian and English;
finished runs stay in PLACE and are not made again.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.corpus import Corpus, Source, prepare, training_texts
from treering.growth import (
    PLANS,
    GrowthRecipe,
    GrowthResult,
    Lora,
    Plan,
    Stage,
    by_turns,
    copied,
    deepen,
    grow,
    grow_recipe,
    looped,
    monolithic,
    revolving,
    seedling,
    stacked,
)
from treering.growth.plans import falling_rate
from treering.growth.study import StudyRecipe, as_study_table, study
from treering.output import staged_directory
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
        f"monolithic, {DEPTH} blocks": (monolithic(DEPTH), 0),
    }
    peaks = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for name, case in cases.items():
            peaks[name] = processes.apply(_peak, [place, case])
    table = Table("run", "peak MiB", "of monolithic's", "of depth 2's", box=None)
    nothing, shallow, _, whole = peaks.values()
    for name, peak in peaks.items():
        table.add_row(name, f"{peak:,.0f}", f"{peak / whole:.2f}", f"{peak / shallow:.2f}")
    console.print(table)
    console.print(f"{nothing:,.0f} MiB are Python's and the libraries' own")


def _peak(place: Path, case: tuple[Plan, int] | None) -> float:
    """MiB at most in this process after a few steps; the high-water mark as Linux tells it."""
    if case:
        run(place, case[0], 4 * 8192, case[1])
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


def precision(place: Path, console: Console, tokens: int = 400_000) -> None:
    """The same plan on the same text from caches of every precision."""
    table = Table("prefix", "validation bits/byte", "above recomputed", box=None)
    reference = None
    for prefix in ("recompute", "float32", "bfloat16", "int8"):
        bits = run(place, stacked(6, 2), tokens, prefix=prefix).stages[-1].validation_bits_per_byte
        reference = reference or bits
        table.add_row(prefix, f"{bits:.5f}", f"{bits - reference:+.5f}")
    console.print(table)


def lora_windows(turns: int, base: float) -> Plan:
    """Windows of two blocks from the top down, low-rank updates of all others, merged and renewed at every turn."""
    order, share = [((5, 6), (3, 4), (1, 2))[turn % 3] for turn in range(turns)], (1 - base) / turns
    first = [Stage(new="1-2", start="random", share=base, rate=(1.0, 1.0))] if base else []
    stages = [
        Stage(
            new=() if turn else (tuple(range(3, 7)) if base else tuple(range(1, 7))),
            start="zero" if base else "random",
            train=window,
            lora=Lora(rank=8),
            share=share,
            keep_moments=True,
            warmup=0.1 if turn < 3 else 0.05,
            rate=(falling_rate(base + turn * share, 0.2, 0.1), falling_rate(base + (turn + 1) * share, 0.2, 0.1)),
        )
        for turn, window in enumerate(order)
    ]
    return Plan(stages=(*first, *stages))


TRIED: dict[str, Plan] = {
    "stacked, one at a time": stacked(6, 1),
    "revolving, 3 rounds": revolving(6, 2, base=0.5, rounds=3),
    "LoRA windows from the start": lora_windows(12, 0.0),
    "by turns": by_turns(6, 2),
    "by turns after 20%": by_turns(6, 2, base=0.2),
    "by turns after 40%": by_turns(6, 2, base=0.4),
    "stacked, two at a time": stacked(6, 2),
    "four or two and head by turns": by_turns(6, 4, head=True),
    "tied all along": Plan(stages=(Stage(new="1-6", start="random", tied=2, share=1.0),)),
    "looped, four or two and head": PLANS["looped-6"].plan(),
    "looped for half": looped(6, 4, base=0.5, head=True),
    "looped for half, two by turns": looped(6, 2, base=0.5),
    "three blocks, monolithic": monolithic(3),
}


def prepare_small(place: Path) -> None:
    """A tokenizer of 1,024 tokens and 2.5 M tokens of Russian and English help pages."""
    if not (place / "tokenizer").exists():
        texts = {language: training_texts(f"embedded:{language}", 0.05) for language in ("ru", "en")}
        with staged_directory(place / "tokenizer") as staging:
            tokenizers.save(tokenizers.train(texts, vocab_size=1024), staging)
    if not (place / "data").exists():
        sources = [Source(path=f"embedded:{language}", name=language) for language in ("ru", "en")]
        prepare(sources, tokenizers.load(place / "tokenizer"), place / "data", block_size=128, validation=0.05)


def gap(place: Path, console: Console, tokens: int, seeds: list[int], rate: float, only: str) -> None:
    """Share of depth's gain that each plan recovers, for the same tokens."""
    prepare_small(place)
    recipe = StudyRecipe(
        tokenizer=str(place / "tokenizer"),
        data=str(place / "data"),
        output=str(place / f"{tokens}-{rate}"),
        backbone=Backbone(preset="tiny"),
        plan=PLANS["copied-6"],
        more={name: plan for name, plan in TRIED.items() if only and only in name},
        kinds=("glyph",),
        equal_compute=False,
        seeds=tuple(seeds),
        training=Training(tokens=tokens, batch_tokens=2048, learning_rate=rate, warmup=0.1, evaluations=4),
        prefix="recompute",
    )
    console.print(as_study_table(study(recipe, Console(stderr=True))))


CLOCKED: dict[str, Plan] = {
    "monolithic": monolithic(DEPTH),
    "shallow": monolithic(2),
    "copied": PLANS["copied-12"].plan(),
    "copied-half": copied(DEPTH, 6, base=0.65, head=True),
}


def clock(place: Path, console: Console, tokens: int, seeds: list[int], rate: float) -> None:
    """Twelve blocks: grown, and the shallow model, for as many seconds as monolithic training takes for ``tokens``.

    A plan's speed is measured on a twentieth of the tokens first; the seconds in the table are those of the run itself.
    """
    prepare_small(place)
    substrate, tokenizer = place / "substrate", tokenizers.load(place / "tokenizer")
    if not substrate.exists():
        with staged_directory(substrate) as staging:
            substrates.build(tokenizer, 64).save(staging, tokenizer)
    table = Table("plan", "seed", "active", "M tokens", "s", "bits/byte", box=None)

    def stages(name: str, plan: Plan, tokens: int, seed: int) -> list[dict[str, Any]]:
        output = place / f"clock-{name}-{tokens}-{seed}-{rate}"
        recipe = GrowthRecipe(
            substrate=str(substrate),
            data=str(place / "data"),
            output=str(output),
            backbone=Backbone(preset="tiny"),
            plan=plan,
            training=TRAINING.model_copy(
                update={"tokens": tokens, "batch_tokens": 2048, "warmup": 0.1, "learning_rate": rate, "seed": seed}
            ),
            prefix="recompute",
            abilities=False,
        )
        if not output.exists():
            grow_recipe(recipe, Console(stderr=True))
        return json.loads((output / "growth.json").read_text())["stages"]

    def seconds(stages: list[dict[str, Any]]) -> float:
        return sum(stage["seconds"] + stage["prefix_seconds"] for stage in stages)

    for seed in seeds:
        budget = None
        for name, plan in CLOCKED.items():
            own = tokens
            if budget is not None:
                probe = seconds(stages(f"{name}-probe", plan, tokens // 20, seed))
                own = round(budget / probe * (tokens // 20))
            made = stages(name, plan, own, seed)
            budget = budget or seconds(made)
            table.add_row(
                name,
                f"{seed}",
                f"{max(stage['active'] for stage in made):,}",
                f"{own / 1e6:.1f}",
                f"{seconds(made):,.0f}",
                f"{made[-1]['validation_bits_per_byte']:.4f}",
            )
            console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "precision", "gap", "clock"))
    parser.add_argument("--place", type=Path, default=Path("runs/gap"), help="of gap, clock: where runs are kept")
    parser.add_argument("--tokens", type=int, default=24_000_000, help="of gap: of every run; of clock: of monolithic")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of gap, clock")
    parser.add_argument("--rate", type=float, default=6e-3, help="of gap, clock: learning rate")
    parser.add_argument("--only", default="", help="of gap: other plans, whose name holds this, beside copied-6")
    options = parser.parse_args()
    what, console = options.what, Console(width=160, highlight=False)
    if what == "gap":
        gap(options.place, console, options.tokens, options.seeds, options.rate, options.only)
        return
    if what == "clock":
        clock(options.place, console, options.tokens, options.seeds, options.rate)
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepare_place(Path(scratch))
        {"speed": speed, "memory": memory, "precision": precision}[what](Path(scratch), console)


if __name__ == "__main__":
    main()
