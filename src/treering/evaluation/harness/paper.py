"""The paper's own protocol (section 6 of our notes on it), kept apart from the standard scores and named ``paper_*``.

Greedy generation, where the first character written is the answer. It measures whether a model writes an answer letter
at all as much as whether it is the right one, so scores below chance are common; the standard way is
``evaluate_tasks``. What the author left open, and we chose: the separator stands before each prompt, as in training;
leading space of what is written does not count; a translation ends with its line or after 100 tokens; of question sets
other than SQuAD and OPUS-100 a run draws 1,000 questions.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import datasets
import numpy as np
import torch
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.errors import TreeringError
from treering.evaluation.harness.tasks import NORMAL_95, inside, unavailable
from treering.reading import printable
from treering.tokenizer import encode, separator

LETTERS = "ABCDE"
LONGEST_ANSWER, LONGEST_TRANSLATION = 8, 100
"""Characters of an answer out of a passage, and tokens of a translation, at most."""
AT_ONCE = 16
"""Prompts that are answered together."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Exam:
    """One of the paper's measures.

    Attributes:
        place: data set of the hub, its configuration and its split.
        ask: the prompt for a row; None if the row is not asked.
        tokens: to be written for a row at most.
        grade: from a row and what was written, a score from 0 to 100; None if that is no answer at all.
        samples: rows of a run.
        chance: what guessing gives, in per cent.
        column: of the author's table.
    """

    place: tuple[str, str | None, str]
    ask: Callable[[Row], str | None]
    tokens: Callable[[Row], int]
    grade: Callable[[Row, str], float | None]
    samples: int
    chance: float | None
    column: str | None


class PaperScore(TypedDict):
    """One model on one exam, in per cent: mean of the runs ± 1.96 σ/√runs, as the paper has it.

    ``unanswered`` is the share of answers that were no letter (or neither true nor false), which count as wrong.
    """

    model: str
    exam: str
    value: float
    margin: float
    runs: int
    samples: int
    chance: float | None
    published: float | None
    unanswered: float | None


def _options(choices: Sequence[str], between: str) -> str:
    return between.join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _letter(written: str, right: str, choices: int) -> float | None:
    """Whether the first character is the right letter; None if it is none of the letters."""
    first = written.lstrip()[:1].upper()
    return None if not first or first not in LETTERS[:choices] else 100.0 * (first == right)


def _mmlu(row: Row) -> str:
    return f"Question: {row['question']}\nOptions: {_options(row['choices'], ' ')}\nAnswer:"


def _listed(row: Row) -> str:
    return f"Question: {row['question']}\nOptions:\n{_options(row['choices']['text'], chr(10))}\nAnswer:"


def _listed_right(row: Row) -> str:
    """The letter of the right option; some rows of ARC number theirs."""
    return LETTERS[list(row["choices"]["label"]).index(row["answerKey"])]


def _passage(row: Row) -> str | None:
    answers = row["answers"]["text"]
    if not answers or len(answers[0]) > LONGEST_ANSWER:
        return None
    return f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"


def _truth(row: Row, written: str) -> float | None:
    said = written.strip().lower()
    for word, value in (("true", True), ("false", False)):
        if said.startswith(word):
            return 100.0 * (value == bool(row["answer"]))
    return None


def _listed_exam(place: tuple[str, str | None, str], choices: int, column: str) -> Exam:
    return Exam(
        place,
        _listed,
        lambda row: 2,
        lambda row, written: _letter(written, _listed_right(row), len(row["choices"]["text"])),
        1000,
        100 / choices,
        column,
    )


def _translation(source: str, target: str, pair: str) -> Exam:
    names = {"en": "English", "ru": "Russian", "zh": "Chinese"}

    def grade(row: Row, written: str) -> float:
        from sacrebleu import sentence_bleu

        line = written.strip().split("\n")[0]
        return float(sentence_bleu(line.upper(), [row["translation"][target].upper()]).score)

    return Exam(
        ("Helsinki-NLP/opus-100", pair, "test"),
        lambda row: f"Translate from {names[source]} to {names[target]}:\n{row['translation'][source]}\nAnswer:",
        lambda row: LONGEST_TRANSLATION,
        grade,
        128,
        None,
        f"{source}-{target}",
    )


EXAMS: dict[str, Exam] = {
    "paper_mmlu": Exam(
        ("cais/mmlu", "all", "test"),
        _mmlu,
        lambda row: 1,
        lambda row, written: _letter(written, LETTERS[row["answer"]], len(row["choices"])),
        1000,
        25.0,
        "MMLU",
    ),
    "paper_arc_easy": _listed_exam(("allenai/ai2_arc", "ARC-Easy", "test"), 4, "ARC-e"),
    "paper_arc_challenge": _listed_exam(("allenai/ai2_arc", "ARC-Challenge", "test"), 4, "ARC-c"),
    "paper_csense": _listed_exam(("tau/commonsense_qa", None, "validation"), 5, "C-SENSE"),
    "paper_squad": Exam(
        ("rajpurkar/squad_v2", None, "validation"),
        _passage,
        lambda row: min(len(row["answers"]["text"][0]), 100),
        lambda row, written: 100.0 * (row["answers"]["text"][0].lower() in written.lower()),
        256,
        None,
        "SQuAD",
    ),
    "paper_boolq": Exam(
        ("google/boolq", None, "validation"),
        lambda row: f"Context: {row['passage']}\nQuestion: {row['question']}\nAnswer (True/False):",
        lambda row: 2,
        _truth,
        1000,
        50.0,
        None,
    ),
    "paper_bleu_en_ru": _translation("en", "ru", "en-ru"),
    "paper_bleu_ru_en": _translation("ru", "en", "en-ru"),
    "paper_bleu_en_zh": _translation("en", "zh", "en-zh"),
    "paper_bleu_zh_en": _translation("zh", "en", "en-zh"),
}

_COLUMNS = ("MMLU", "ARC-e", "ARC-c", "C-SENSE", "SQuAD", "en-ru", "ru-en", "en-zh", "zh-en")
_FIGURES = """
best_bvv_ru 22.29 23.04 24.62 20.13 14.84 6.44 8.80 0.95 0.74
best_bvv_zh 19.42 19.51 21.94 19.62 15.12 3.15 3.04 1.41 7.78
best_bvv_moe 23.44 23.74 25.28 19.69 19.73 6.52 6.22 2.93 4.95
best_bvv_unfrozen_ru 11.37 20.56 24.18 18.79 13.55 8.40 7.96 0.77 1.09
best_bvv_unfrozen_zh 14.03 19.74 25.02 18.98 13.52 4.29 2.90 1.65 5.93
max_bvv_ru 23.58 21.65 24.78 19.65 18.95 8.65 8.77 0.52 0.81
max_bvv_zh 24.72 21.93 26.49 20.21 17.66 1.28 3.47 2.36 7.44
max_bvv_moe 22.37 21.39 25.05 20.12 18.40 5.02 5.04 1.34 3.35
nemo_bvv_ru 8.80 19.53 21.34 19.51 6.80 4.68 5.71 0.67 0.89
nemo_bvv_zh 6.62 23.53 24.48 19.27 6.05 2.05 2.31 0.87 4.05
nemo_bvv_moe 8.99 22.44 23.75 19.90 7.70 4.13 3.37 0.88 2.26
abs-bvv-1 18.08 19.21 19.83 19.36 1.21
abs-bvv-2 19.43 21.04 21.71 19.66 0.82
abs-bvv-3 20.63 21.81 24.78 19.50 3.75
abs-bvv-4 21.03 21.14 24.78 19.99 3.16
abs-bvv-5 20.33 20.42 23.24 19.80 2.30
abs-bvv-6 21.63 23.42 25.62 19.51 5.55
"""
PUBLISHED: dict[str, dict[str, float]] = {
    name: dict(zip(_COLUMNS, map(float, figures), strict=False))
    for name, *figures in (line.split() for line in _FIGURES.strip().splitlines())
}
"""The author's figures in per cent, by model and column."""


def paper_protocol(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    exams: Sequence[str] = tuple(EXAMS),
    data: str | os.PathLike[str] | None = None,
    like: str | None = None,
    runs: int = 10,
    samples: int | None = None,
    show: Callable[[str], object] = lambda told: None,
) -> list[PaperScore]:
    """Measure a model as the paper did: each run draws its own questions.

    Args:
        name: what the rows call the model.
        data: a directory with data sets of the hub as ``ORGANISATION/NAME``, used instead of the network.
        like: a model of the author's whose figures stand beside.
        samples: questions of a run, instead of the protocol's.
        show: is told which exam is next.

    Raises:
        TreeringError: there is no such exam or published model, or the questions cannot be had.
    """
    if unknown := [exam for exam in exams if exam not in EXAMS]:
        raise TreeringError(f"There is no exam {printable(unknown[0])}. There are: {', '.join(EXAMS)}.")
    if like is not None and like not in PUBLISHED:
        raise TreeringError(f"The author published no {printable(like)}. There are: {', '.join(PUBLISHED)}.")
    found = []
    for exam in exams:
        show(exam)
        found.append(_sit(name, model, tokenizer, exam, data, like, runs, samples))
    return found


def as_paper_table(rows: Sequence[PaperScore]) -> Table:
    """The scores as the paper prints them, with what guessing gives beside."""
    table = Table("model", "the paper's protocol", box=None)
    for column in ("%", "chance", "published", "no answer at all", "questions"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            row["exam"],
            f"{row['value']:.2f} ± {row['margin']:.2f}",
            *("" if value is None else f"{value:.2f}" for value in (row["chance"], row["published"])),
            "" if row["unanswered"] is None else f"{row['unanswered']:.1%}",
            f"{row['runs']} × {row['samples']:,}",
        )
    return table


def _sit(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    exam: str,
    data: str | os.PathLike[str] | None,
    like: str | None,
    runs: int,
    samples: int | None,
) -> PaperScore:
    own = EXAMS[exam]
    rows = _rows(exam, own, data)
    each = min(samples or own.samples, len(rows))
    drawn = [np.random.default_rng(run).choice(len(rows), each, replace=False) for run in range(runs)]
    asked = sorted({int(index) for run in drawn for index in run})
    written = _answers(model, tokenizer, [str(own.ask(rows[i])) for i in asked], [own.tokens(rows[i]) for i in asked])
    grades = {i: own.grade(rows[i], text) for i, text in zip(asked, written, strict=True)}
    means = [statistics.mean(grades[int(index)] or 0.0 for index in run) for run in drawn]
    margin = NORMAL_95 * statistics.stdev(means) / math.sqrt(runs) if runs > 1 else 0.0
    letters = own.chance is not None
    return PaperScore(
        model=name,
        exam=exam,
        value=round(statistics.mean(means), 4),
        margin=round(margin, 4),
        runs=runs,
        samples=each,
        chance=own.chance,
        published=PUBLISHED[like].get(own.column or "") if like else None,
        unanswered=statistics.mean(grade is None for grade in grades.values()) if letters else None,
    )


def _rows(exam: str, own: Exam, data: str | os.PathLike[str] | None) -> list[Row]:
    """The rows that are asked."""
    path, configuration, split = own.place
    try:
        with inside(Path(data) if data is not None else None):
            loaded = datasets.load_dataset(path, configuration, split=split)
        rows = [row for row in loaded if own.ask(row) is not None]
    except Exception as error:  # datasets, the hub and httpx each raise their own
        raise unavailable(exam, error, path) from error
    if not rows:
        raise TreeringError(f"{path} has no row that {exam} could ask.")
    return rows


@torch.inference_mode()
def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], tokens: Sequence[int]
) -> list[str]:
    """What greedy decoding writes after each prompt; one that does not fit into the context loses its beginning."""
    context, start = context_length(model.config), separator(tokenizer)
    ids = [[start, *own][most - context :] for own, most in zip(encode(tokenizer, prompts), tokens, strict=True)]
    written = [""] * len(ids)
    for batch in _batches(sorted(range(len(ids)), key=lambda i: (tokens[i], len(ids[i])))):
        width, most = max(len(ids[i]) for i in batch), max(tokens[i] for i in batch)
        pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        padded = [[pad] * (width - len(ids[i])) + ids[i] for i in batch]
        mask = [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch]
        generate: Any = model.generate
        out = generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=pad,
        )
        for i, row in zip(batch, out[:, width:].tolist(), strict=True):
            written[i] = str(tokenizer.decode(row[: tokens[i]], skip_special_tokens=True))
    return written


def _batches(order: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(order), AT_ONCE):
        yield order[begin : begin + AT_ONCE]
