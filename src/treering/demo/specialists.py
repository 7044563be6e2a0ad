"""The main job on the embedded text: two specialists on one frozen substrate, joined after training, and measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from treering import __version__
from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.composition import DEFAULT_RULE, compose_directories, load_model
from treering.corpus import Source, prepare, training_texts
from treering.demo.steps import (
    PROMPTS,
    TEMPERATURE,
    DemoResult,
    claim,
    machine,
    run_in_words,
    samples,
    save,
    saved,
    step,
)
from treering.evaluation import (
    DocumentLosses,
    Row,
    composition_losses,
    held_out_texts,
    paired_change,
    require_composition,
    row,
    uniform_bits_per_byte,
)
from treering.evaluation.forgetting import Difference, differences
from treering.output import locked, staged_directory, write_file
from treering.report import as_png_url, as_svg, loss_curves, render, scores
from treering.report.grids import change_grid, plain_label, score_grid
from treering.report.measures import joining_takeaway
from treering.training import Backbone, ExpertRecipe, Training, train_expert
from treering.training.unfinished import is_complete

LANGUAGES = ("ru", "zh", "en")
EXPERTS = {"ru": "1/2", "zh": "2/2"}
"""Each expert reads its own language and one half of the English pages; no English page is shared."""

VALIDATION, CALIBRATION = 0.05, 0.01
COMPARED = ("mean", "evidence", DEFAULT_RULE)
"""Rules: the paper's, the one with the tightest bound, and the one that the composition is stored with."""


@dataclass(frozen=True)
class Size:
    """How large the demo is."""

    vocab_size: int
    d_model: int
    preset: str
    training: Training
    documents: int | None = None  # per language, for measuring; None measures on all that were held out


FULL = Size(4096, 192, "small", Training(tokens=1_000_000, evaluations=6))
QUICK = Size(4096, 64, "tiny", Training(tokens=150_000, evaluations=2), documents=20)


def demo(output: str | os.PathLike[str], quick: bool = False, console: Console | None = None) -> DemoResult:
    """Run everything on the embedded corpora and leave experts, composition, report and results in ``output``.

    What is complete is never made again: an interrupted demo goes on where it stopped, and a finished one only shows
    its table.

    Raises:
        TreeringError: ``output`` holds something else, or a demo of the other size, or another process makes it.
    """
    console = console or Console(stderr=True)
    output, size = Path(output), QUICK if quick else FULL
    with locked(output):
        return _made(output, size, console)


def _made(output: Path, size: Size, console: Console) -> DemoResult:
    recipe = {"backbone": {"preset": size.preset}, "training": size.training.model_dump(exclude_unset=True)}
    claim(output, {"quick": size is QUICK}, {"expert.yaml": yaml.safe_dump(recipe)})
    tokenizer = _tokenizer(output / "tokenizer", size, console)
    substrate = _substrate(output / "substrate", tokenizer, size, console)
    for expert, part in EXPERTS.items():
        _expert(output, expert, part, tokenizer, size, console)
    if not (output / "composed").exists():
        step(console, "composed", f"the two experts, by {DEFAULT_RULE}; nothing is trained")
        compose_directories({name: output / name for name in EXPERTS}, output / "composed")
    if not (output / "report.html").exists():
        step(console, "results", "bits per byte on held-out pages, and a page to look at")
        held_out = held_out_texts(output / f"data-{expert}" for expert in EXPERTS)
        texts = {language: held_out[language][: size.documents] for language in LANGUAGES}
        model = require_composition(load_model(output / "composed"))
        losses = {text: composition_losses(model, tokenizer, found, COMPARED) for text, found in texts.items()}
        measured = DemoResult(_rows(losses, uniform_bits_per_byte(tokenizer, texts)), _findings(losses))
        save(output, measured)
        changes = differences(losses, COMPARED, {expert: [expert] for expert in EXPERTS})
        _report(output, measured, changes, tokenizer, substrate, size)
    return saved(output)


def _findings(losses: Mapping[str, Mapping[str, DocumentLosses]]) -> list[str]:
    """What each rule wins and loses, in sentences, from the measured losses (by text and expert or rule) alone."""
    sentences = []
    for text, measured in losses.items():
        bits = {name: its.score().bits_per_byte for name, its in measured.items()}
        best, other = sorted(EXPERTS, key=bits.__getitem__)
        parts = []
        for name in COMPARED:
            change = paired_change(measured[name], measured[best])
            verdict = "not to be told apart from"
            if change.significant:
                verdict = "better than" if change.change < 0 else "worse than"
            parts.append(
                f"joined by {name} {bits[name]:.3f}, {verdict} the better expert ({change.change:+.1%}, 95% interval "
                f"{change.low:+.1%} to {change.high:+.1%})"
            )
        alone = f"{text}: {best} alone {bits[best]:.3f} bits per byte, {other} alone {bits[other]:.3f}"
        sentences.append(f"{alone}; {'; '.join(parts)}.")
    return sentences


def _tokenizer(path: Path, size: Size, console: Console) -> PreTrainedTokenizerFast:
    if not path.exists():
        step(
            console,
            "tokenizer",
            f"{size.vocab_size:,} Unicode tokens from the training pages of {', '.join(LANGUAGES)}",
        )
        texts = {language: training_texts(f"embedded:{language}", VALIDATION, CALIBRATION) for language in LANGUAGES}
        trained = tokenizers.train(texts, vocab_size=size.vocab_size)
        with staged_directory(path) as staging:
            tokenizers.save(trained, staging)
    return tokenizers.load(path)


def _substrate(path: Path, tokenizer: PreTrainedTokenizerFast, size: Size, console: Console) -> substrates.Substrate:
    if not path.exists():
        step(
            console,
            "substrate",
            f"every token drawn with Unifont, {size.d_model} numbers each, never trained",
        )
        with staged_directory(path) as staging:
            substrates.build(tokenizer, size.d_model).save(staging, tokenizer)
    return substrates.load(path)


def _expert(
    output: Path, expert: str, part: str, tokenizer: PreTrainedTokenizerFast, size: Size, console: Console
) -> None:
    data = output / f"data-{expert}"
    if not data.exists():
        step(console, f"data-{expert}", f"{expert} and half {part} of the English pages, packed")
        sources = [
            Source(path=f"embedded:{expert}", name=expert),
            Source(path="embedded:en", name="en", part=part),
        ]
        context = Backbone(preset=size.preset).shape().context
        prepare(sources, tokenizer, data, block_size=context, validation=VALIDATION, calibration=CALIBRATION)
    if not is_complete(output / expert):
        step(console, expert, "an expert, trained apart from the other")
        recipe = ExpertRecipe(
            substrate=os.fspath(output / "substrate"),
            data=os.fspath(data),
            output=os.fspath(output / expert),
            backbone=Backbone(preset=size.preset),
            training=size.training,
        )
        train_expert(recipe, console)


def _rows(losses: Mapping[str, Mapping[str, DocumentLosses]], uniform: list[Row]) -> list[Row]:
    """What knows nothing, every expert, and the composition by every rule, on every text."""
    results = list(uniform)
    for name in (*EXPERTS, *COMPARED):
        joined = name in COMPARED
        for text, measured in losses.items():
            score = measured[name].score()
            results.append(row("composed" if joined else name, text, name if joined else None, score))
    return results


def _report(
    output: Path,
    result: DemoResult,
    changes: list[Difference],
    tokenizer: PreTrainedTokenizerFast,
    substrate: substrates.Substrate,
    size: Size,
) -> None:
    measured = [r for r in result.rows if r["model"] != "uniform"]
    runs = {name: json.loads((output / name / "training.json").read_text()) for name in EXPERTS}
    histories = {name: json.loads((output / name / "history.json").read_text()) for name in EXPERTS}
    measured_runs = {name: run["measured"] for name, run in runs.items()}
    score_figure = scores([{**r, "model": plain_label(r["model"], r["rule"])} for r in measured])
    score_figure.savefig(output / "scores.png", dpi=144)
    page = render(
        "demo",
        version=__version__,
        date=date.today().isoformat(),
        machine=machine(),
        takeaway=joining_takeaway(changes, DEFAULT_RULE),
        table=score_grid(result.rows),
        changes=change_grid(changes),
        score_figure=as_svg(score_figure, "scores", "Bits per byte by text and model", "The table has the values."),
        loss_figure=as_svg(loss_curves(histories), "loss", "Loss curves of both experts"),
        loss_caption="Validation text: each expert's own held-out pages, its language and English together.",
        fingerprint=substrate.fingerprint,
        sheet=as_png_url(substrates.draw_sheet(tokenizer, substrate)),
        temperature=TEMPERATURE,
        samples=samples(((name, load_model(output / name)) for name in (*EXPERTS, "composed")), tokenizer),
        facts=[
            ("tokenizer", f"{len(tokenizer):,} tokens, {tokenizers.identity(tokenizer)}"),
            *((f"expert {name}", run_in_words(run)) for name, run in measured_runs.items()),
            ("held out", f"{VALIDATION:.0%} of the pages, the same page ids in every language"),
            ("set apart", f"{CALIBRATION:.0%} of the pages, for what may be fitted on top of the experts"),
        ],
        commands=_commands(size),
    )
    write_file(output / "report.html", page)


def _commands(size: Size) -> str:
    block = Backbone(preset=size.preset).shape().context
    return "\n".join(
        [
            f"treering tokenizer train embedded:ru embedded:zh embedded:en --vocab-size {size.vocab_size} -o tokenizer",
            f"treering substrate build tokenizer --d-model {size.d_model} -o substrate",
            *(
                f"treering data prepare embedded:{expert} embedded:en --part en={part} --tokenizer tokenizer "
                f"--calibration {CALIBRATION} --block-size {block} -o data-{expert}"
                for expert, part in EXPERTS.items()
            ),
            *(
                f"treering train expert.yaml --substrate substrate --data data-{expert} -o {expert}"
                for expert in EXPERTS
            ),
            f"treering compose {' '.join(EXPERTS)} -o composed",
            f"treering eval forgetting composed {' '.join(f'--data data-{e}' for e in EXPERTS)} "
            + " ".join(f"--rule {name}" for name in COMPARED),
            f'treering generate composed "{PROMPTS["en"]}"',
        ]
    )
