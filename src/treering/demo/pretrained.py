"""A pretrained model learns two languages as branches, forgets nothing, and says who spoke where."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from treering import __version__
from treering import tokenizer as tokenizers
from treering.composition import DEFAULT_RULE, ComposedModel, compose_directories, load_model
from treering.corpus import Source, prepare
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
    Change,
    DocumentLosses,
    Row,
    composition_losses,
    explain,
    held_out_texts,
    paired_change,
    require_composition,
    row,
)
from treering.growth.recipe import GrowthRecipe, grow_recipe
from treering.output import locked, staged_directory, write_file
from treering.report import Grid, as_png, as_svg, loss_curves, render, scores
from treering.report.explanation import painted
from treering.report.grids import change_cell, score_grid
from treering.report.takeaways import Found, of_changes
from treering.training.unfinished import is_complete

BRANCHES = {"ru": "Russian", "zh": "Chinese"}
NAMES = {**BRANCHES, "en": "English"}
VALIDATION = 0.1
COMPARED = ("evidence", DEFAULT_RULE)
"""Rules: the one with the tightest bound, and the one that the composition is stored with."""

MIXED = (
    ("en", "To change the settings, open the Tools menu and choose Options. "),
    ("ru", "Чтобы сохранить документ под другим именем, выберите команду «Сохранить как» в меню «Файл». "),
    ("zh", "要打开此对话框，请选择“工具”菜单中的“选项”，然后单击“确定”。 "),
    ("en", "Click OK to apply the changes and to close the dialog."),
)
"""A paragraph that changes its language, passage by passage, to be told apart by who foresaw it."""


@dataclass(frozen=True)
class Size:
    """How large the demo is: pages of each language to read, passes over them, and documents to measure on."""

    pages: int
    epochs: float
    documents: int
    block: int = 256


FULL, QUICK = Size(400, 2, 20), Size(30, 1, 2)


def demo_pretrained(
    model: str,
    output: str | os.PathLike[str],
    quick: bool = False,
    console: Console | None = None,
    pages: int | None = None,
) -> DemoResult:
    """Grow a Russian and a Chinese branch on a pretrained model, join them, measure, and leave all in ``output``.

    What is complete is never made again: an interrupted demo goes on where it stopped, and a finished one only shows
    its table.

    Args:
        model: directory, ``hub:NAME`` or ``FILE.gguf`` of a model that branches can grow on; best one that was trained
            on English.
        pages: of each language, instead of as many as the demo takes; a tenth of them is held out.

    Raises:
        TreeringError: ``output`` holds something else or another process makes it, or the model cannot be read or has
            no place for branches.
    """
    console, output, size = console or Console(stderr=True), Path(output), QUICK if quick else FULL
    size = replace(size, pages=pages or size.pages)
    with locked(output):
        claim(
            output,
            {"pretrained": model, "quick": quick, "pages": size.pages},
            {"branch.yaml": yaml.safe_dump(_recipe(size))},
        )
        tokenizer = _base(output / "base", model, console)
        for branch in BRANCHES:
            _branch(output, branch, tokenizer, size, console)
        _english(output, tokenizer, size)
        if not (output / "joined").exists():
            step(console, "joined", f"the base and its branches, by {DEFAULT_RULE}; nothing is trained")
            experts = {name: output / name for name in ("base", *BRANCHES)}
            compose_directories(experts, output / "joined")
        if not (output / "report.html").exists():
            step(console, "results", "bits per byte on held-out pages, samples, and who spoke where")
            joined = require_composition(load_model(output / "joined"))
            losses = _measure(output, joined, tokenizer, size)
            measured = DemoResult(_rows(losses), _findings(losses))
            save(output, measured)
            _report(output, measured, _changes(losses), joined, tokenizer, model)
        return saved(output)


def _recipe(size: Size) -> dict[str, Any]:
    # The last weights: the pages that would choose the best ones are those that are reported on.
    training = {"epochs": size.epochs, "evaluations": 4, "keep": "last"}
    return {"plan": "branch", "training": training, "abilities": False}


def _base(place: Path, model: str, console: Console) -> PreTrainedTokenizerFast:
    """The pretrained model as a plain directory, which loads at once and which the branches are grown on."""
    if not place.exists():
        step(console, "base", f"{model} as a plain checkpoint; nothing is trained")
        tokenizer, base = tokenizers.load(model), load_model(model, dtype=torch.float32)
        with staged_directory(place) as staging:
            base.save_pretrained(staging)
            tokenizers.save(tokenizer, staging)
    return tokenizers.load(place)


def _branch(output: Path, name: str, tokenizer: PreTrainedTokenizerFast, size: Size, console: Console) -> None:
    data = output / f"data-{name}"
    if not data.exists():
        step(console, data.name, f"{size.pages} {NAMES[name]} help pages, packed")
        _prepare(data, name, tokenizer, size)
    if not is_complete(output / name):
        step(console, name, "a branch of two blocks on the base, which stays as it is")
        fields = {"model": os.fspath(output / "base"), "data": os.fspath(data), "output": os.fspath(output / name)}
        grow_recipe(GrowthRecipe.model_validate(_recipe(size) | fields), console)


def _english(output: Path, tokenizer: PreTrainedTokenizerFast, size: Size) -> None:
    """English pages, of which only those held out are read: nothing here learns from the others."""
    if not (output / "data-en").exists():
        _prepare(output / "data-en", "en", tokenizer, size)


def _prepare(data: Path, language: str, tokenizer: PreTrainedTokenizerFast, size: Size) -> None:
    source = Source(path=f"embedded:{language}", name=language, limit=size.pages)
    prepare([source], tokenizer, data, block_size=size.block, validation=VALIDATION)


def _measure(
    output: Path, joined: ComposedModel, tokenizer: PreTrainedTokenizerFast, size: Size
) -> dict[str, dict[str, DocumentLosses]]:
    """By text, the losses of the base, of every branch and rule."""
    held_out = held_out_texts(output / f"data-{name}" for name in NAMES)
    return {name: composition_losses(joined, tokenizer, held_out[name][: size.documents], COMPARED) for name in NAMES}


def _rows(losses: Mapping[str, Mapping[str, DocumentLosses]]) -> list[Row]:
    return [
        row("joined" if name in COMPARED else name, text, name if name in COMPARED else None, measured[name].score())
        for name in ("base", *BRANCHES, *COMPARED)
        for text, measured in losses.items()
    ]


def _changes(losses: Mapping[str, Mapping[str, DocumentLosses]]) -> dict[str, dict[str, Found]]:
    """By branch or rule and by text, the change from the base."""
    found: dict[str, dict[str, Found]] = {}
    for text, measured in losses.items():
        for name in (*BRANCHES, *COMPARED):
            change = paired_change(measured[name], measured["base"])
            own = Found(change.change, change.low, change.high, len(measured[name].nats))
            found.setdefault(name, {})[NAMES[text]] = own
    return found


def _findings(losses: Mapping[str, Mapping[str, DocumentLosses]]) -> list[str]:
    """What the branches learned and what joining kept, in sentences, from the measured losses alone."""
    sentences = []
    for text, measured in losses.items():
        base = measured["base"].score().bits_per_byte
        begin = f"{NAMES[text]}: the base needs {base:.3f} bits per byte"
        joined = " and ".join(
            f"{measured[rule].score().bits_per_byte:.3f} by {rule} "
            f"({_interval(paired_change(measured[rule], measured['base']))})"
            for rule in COMPARED
        )
        alone = ""
        if text in BRANCHES:
            own = measured[text].score().bits_per_byte
            alone = f", its branch {own:.3f} ({_interval(paired_change(measured[text], measured['base']))})"
        sentences.append(f"{begin}{alone}; joined, they need {joined}.")
    return sentences


def _interval(change: Change) -> str:
    return f"{change.change:+.1%}, 95% interval {change.low:+.1%} to {change.high:+.1%}"


def _report(
    output: Path,
    result: DemoResult,
    changes: Mapping[str, Mapping[str, Found]],
    joined: ComposedModel,
    tokenizer: PreTrainedTokenizerFast,
    model: str,
) -> None:
    base = joined.expert("base")
    runs = {name: json.loads((output / name / "growth.json").read_text()) for name in BRANCHES}
    histories = {name: json.loads((output / name / "history.json").read_text()) for name in BRANCHES}
    figure = scores([{**r, "model": _label(r["model"], r["rule"])} for r in result.rows])
    write_file(output / "scores.png", as_png(figure))
    spoken = painted(explain(joined, tokenizer, "".join(passage for _, passage in MIXED)))
    page = render(
        "pretrained",
        version=__version__,
        date=date.today().isoformat(),
        machine=machine(),
        takeaway=of_changes(f"Joined by {DEFAULT_RULE}, the model with its branches", "alone", changes[DEFAULT_RULE]),
        table=score_grid(result.rows, _label, NAMES),
        changes=Grid(
            ["", *NAMES.values()],
            [
                (f"branch {name}" if name in BRANCHES else f"joined, {name}", [change_cell(c) for c in own.values()])
                for name, own in changes.items()
            ],
            "Change of bits per byte from the base, on the same documents, with the 95% interval of a paired "
            "bootstrap: below 0, a gain (green); above, a loss (red); no ground where the interval holds 0.",
        ),
        score_figure=as_svg(figure, "scores", "Bits per byte by text and model", "The table has the values."),
        loss_figure=as_svg(loss_curves(histories), "loss", "Loss curves of both branches"),
        experts=spoken["experts"],
        passages=_by_passage(spoken["pieces"]),
        rule=str(joined.rule),
        samples=samples({"base": base, "joined": joined}.items(), tokenizer),
        temperature=TEMPERATURE,
        facts=[
            ("base", f"{model}: {base.num_parameters():,} parameters"),
            *((f"branch {name}", _branch_in_words(run)) for name, run in runs.items()),
            ("joined", f"{joined.num_parameters():,} parameters; the base and each branch's own blocks, once each"),
            ("on disk", _sizes(output)),
        ],
        commands=_commands(model),
    )
    write_file(output / "report.html", page)


def _by_passage(pieces: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The pieces of `MIXED` by the passage that each begins in, with its language."""
    ends = list(accumulate(len(passage) for _, passage in MIXED))
    placed = groupby(pieces, key=lambda piece: bisect_right(ends, piece["start"]))
    return [(MIXED[at][0], list(own)) for at, own in placed]


def _label(model: str, rule: str | None) -> str:
    return f"{model}, {rule}" if rule else model if model == "base" else f"branch {model}"


def _branch_in_words(run: Mapping[str, Any]) -> str:
    stage = run["stages"][-1]
    return f"{stage['active']:,} parameters trained; {run_in_words(stage)}"


def _sizes(output: Path) -> str:
    files = {path.name: path.stat().st_size / 2**20 for path in sorted((output / "joined").glob("*.safetensors"))}
    return ", ".join(f"{name} {size:,.0f} MiB" for name, size in files.items())


def _commands(model: str) -> str:
    """The same by hand; pages are fewer here than ``data prepare`` takes."""
    return "\n".join(
        [
            *(
                f"treering data prepare embedded:{name} --tokenizer {model} --block-size {FULL.block} -o data-{name}"
                for name in BRANCHES
            ),
            *(f"treering grow branch.yaml --model {model} --data data-{name} -o {name}" for name in BRANCHES),
            f"treering compose base={model} {' '.join(f'{name}={name}' for name in BRANCHES)} -o joined",
            f'treering generate joined "{PROMPTS["ru"]}"',
            "treering explain joined --file FILE -o who-spoke.html",
        ]
    )
