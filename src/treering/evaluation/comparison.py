"""Models side by side: on texts and tasks, each with its interval, and who beats whom."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from rich.table import Table

from treering.errors import TreeringError
from treering.evaluation.bits import DocumentLosses, paired_change, resampled_ratios, spread

BITS = "bits per byte"


@dataclass(frozen=True)
class Subject:
    """What models are compared on: a text by its bits per byte, or a task by one of its measures."""

    name: str
    measure: str

    @property
    def lower_is_better(self) -> bool:
        """Of bits; a task's measures are shares of questions that are right."""
        return self.measure == BITS


Found = DocumentLosses | np.ndarray
"""What a model did: losses of a text's documents, or the measure of each question of a task [question]."""


class Cell(TypedDict):
    """One model on one subject; ``low`` and ``high`` bound the 95% interval over documents or questions."""

    model: str
    subject: str
    measure: str
    value: float
    low: float
    high: float
    count: int


class Pair(TypedDict):
    """Two models on one subject, on the same documents or questions.

    ``difference`` is of the first from the second: of bits per byte as a share (−0.01: one percent fewer), else in the
    measure's own unit; ``low`` and ``high`` bound the 95% interval of a paired bootstrap.
    """

    first: str
    second: str
    subject: str
    measure: str
    difference: float
    low: float
    high: float
    count: int
    better: Literal["first", "second", "unknown"]


@dataclass(frozen=True)
class Comparison:
    """All cells, models by subjects, and all pairs of models on each subject."""

    cells: list[Cell]
    pairs: list[Pair]


def compare(found: Mapping[str, Mapping[Subject, Found]], seed: int = 0) -> Comparison:
    """Compare models that were measured on the same documents and questions.

    "Better" is said where the 95% interval of the paired difference excludes 0. Of twenty comparisons of models that do
    not differ, one is expected to say so all the same.

    Args:
        found: by model, what it did on each subject.

    Raises:
        TreeringError: a model was not measured on what the others were.
    """
    subjects = list(dict.fromkeys(subject for own in found.values() for subject in own))
    for model, own in found.items():
        for subject in subjects:
            sizes = {_size(others[subject]) for others in found.values() if subject in others}
            if subject not in own or len(sizes) > 1:
                raise TreeringError(
                    f"{model} and the other models were not measured on the same documents of {subject.name}."
                )
    cells = [_cell(model, subject, own[subject], seed) for model, own in found.items() for subject in subjects]
    pairs = [
        _pair(first, second, subject, found[first][subject], found[second][subject], seed)
        for subject in subjects
        for first, second in itertools.combinations(found, 2)
    ]
    return Comparison(cells, pairs)


def goodness(cells: Sequence[Cell]) -> dict[tuple[str, str, str], float]:
    """How good each model is on a subject by a measure, from 0, the worst there, to 1, the best."""
    found: dict[tuple[str, str, str], float] = {}
    for (subject, measure), own in by_subject(cells).items():
        values = [-cell["value"] if measure == BITS else cell["value"] for cell in own]
        width = (max(values) - min(values)) or 1.0
        found |= {
            (cell["model"], subject, measure): 1 - (max(values) - value) / width
            for cell, value in zip(own, values, strict=True)
        }
    return found


def as_comparison_tables(comparison: Comparison) -> tuple[Table, Table]:
    """Models by subjects, the best in bold; and who beats whom."""
    values = Table("", "measure", "n", *_models(comparison), box=None)
    for column in values.columns[2:]:
        column.justify = "right"
    for row in _values(comparison, "[bold]{}[/]"):
        values.add_row(*row)
    verdicts = Table("", "measure", "difference", "95% interval", "", box=None)
    for pair in comparison.pairs:
        verdicts.add_row(pair["subject"], pair["measure"], *told(pair), sentence(pair))
    return values, verdicts


def _models(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(cell["model"] for cell in comparison.cells))


def _values(comparison: Comparison, best: str) -> Iterator[list[str]]:
    """Subject, measure, number, and each model's value with its interval; ``best`` is how the best ones are shown."""
    good = goodness(comparison.cells)
    for (subject, measure), own in by_subject(comparison.cells).items():
        shown = [f"{cell['value']:.3f}{spread(cell['low'], cell['high'], cell['count'])}" for cell in own]
        marked = [
            best.format(text) if good[cell["model"], subject, measure] == 1 else text
            for cell, text in zip(own, shown, strict=True)
        ]
        yield [subject, measure, f"{own[0]['count']:,}", *marked]


def sentence(pair: Pair) -> str:
    """Who beats whom, in words."""
    first, second = pair["first"], pair["second"]
    if pair["count"] < 2:
        return f"of {first} and {second}, one document or question tells nothing"
    if pair["better"] == "unknown":
        return f"{first} and {second} cannot be told apart"
    return f"{first} beats {second}" if pair["better"] == "first" else f"{second} beats {first}"


def as_markdown(comparison: Comparison) -> str:
    """Both tables in Markdown."""
    models = _models(comparison)
    lines = ["| | measure | n | " + " | ".join(map(_escaped, models)) + " |", "|---|---|---|" + "---|" * len(models)]
    lines += [f"| {_escaped(subject)} | {' | '.join(row)} |" for subject, *row in _values(comparison, "**{}**")]
    lines += ["", "| | measure | difference | 95% interval | |", "|---|---|---|---|---|"]
    for pair in comparison.pairs:
        columns = [_escaped(pair["subject"]), pair["measure"], *told(pair), _escaped(sentence(pair))]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """The cells, a line for each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Cell.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.cells)
    return text.getvalue()


def _cell(model: str, subject: Subject, own: Found, seed: int) -> Cell:
    if isinstance(own, DocumentLosses):
        score = own.score(seed)
        value, low, high, count = score.bits_per_byte, score.low, score.high, score.documents
    else:
        value, count = float(own.mean()), len(own)
        low, high = map(float, np.quantile(_resampled_means(own, seed), [0.025, 0.975]))
    return Cell(
        model=model, subject=subject.name, measure=subject.measure, value=value, low=low, high=high, count=count
    )


def _pair(first: str, second: str, subject: Subject, a: Found, b: Found, seed: int) -> Pair:
    if isinstance(a, DocumentLosses) and isinstance(b, DocumentLosses):
        change = paired_change(a, b, seed)
        difference, low, high = change.change, change.low, change.high
    else:
        assert isinstance(a, np.ndarray)
        assert isinstance(b, np.ndarray)
        difference = float(a.mean() - b.mean())
        low, high = map(float, np.quantile(_resampled_means(a, seed) - _resampled_means(b, seed), [0.025, 0.975]))
    count = _size(a)
    sign = 0 if count < 2 else 1 if low > 0 else -1 if high < 0 else 0
    winner: dict[int, Literal["first", "second", "unknown"]] = {1: "first", -1: "second", 0: "unknown"}
    return Pair(
        first=first,
        second=second,
        subject=subject.name,
        measure=subject.measure,
        difference=difference,
        low=low,
        high=high,
        count=count,
        better=winner[-sign if subject.lower_is_better else sign],
    )


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    return resampled_ratios(values, np.ones(len(values)), seed)


def _size(found: Found) -> int:
    return len(found.nats) if isinstance(found, DocumentLosses) else len(found)


def by_subject(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each subject and measure, model by model."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell["subject"], cell["measure"]), []).append(cell)
    return grouped


def told(pair: Pair) -> tuple[str, str]:
    """The difference and its interval, as people read them."""
    form = "{:+.1%}" if pair["measure"] == BITS else "{:+.3f}"
    interval = f"{form} … {form}".format(pair["low"], pair["high"]) if pair["count"] > 1 else ""
    return form.format(pair["difference"]), interval


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
