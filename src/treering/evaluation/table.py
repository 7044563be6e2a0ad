"""Results of every ``eval`` command: rows of one shape, as JSON or as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypedDict

from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.corpus import load_held_out
from treering.evaluation.bits import Score, document_losses, spread, uniform_losses


class Row(TypedDict):
    """One model on one text; ``low`` and ``high`` bound the 95% interval over documents."""

    model: str
    text: str
    rule: str | None
    bits_per_byte: float
    low: float
    high: float
    documents: int


def row(model: str, text: str, rule: str | None, score: Score) -> Row:
    """A score as a row."""
    return Row(
        model=model,
        text=text,
        rule=rule,
        bits_per_byte=round(score.bits_per_byte, 4),
        low=round(score.low, 4),
        high=round(score.high, 4),
        documents=score.documents,
    )


def held_out_texts(
    directories: Iterable[str | os.PathLike[str]], split: Literal["validation", "calibration"] = "validation"
) -> dict[str, list[str]]:
    """Held-out documents of prepared corpora by source; one that several corpora hold out counts once.

    Args:
        split: those to measure on, or those set apart for fitting on top of trained experts.

    Raises:
        TreeringError: a directory is not a prepared corpus.
    """
    documents: dict[str, dict[str, str]] = {}
    for directory in directories:
        for row in load_held_out(directory, split):
            documents.setdefault(row["source"], {})[row["id"]] = row["text"]
    return {source: list(found.values()) for source, found in documents.items()}


def bits_per_byte(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Sequence[str]]
) -> list[Row]:
    """A row of bits per byte for each text (a name and its documents)."""
    rule = getattr(model.config, "rule", None)
    return [row(name, text, rule, document_losses(model, tokenizer, found).score()) for text, found in texts.items()]


def uniform_bits_per_byte(
    tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Sequence[str]], name: str = "uniform"
) -> list[Row]:
    """The rows of the baseline that knows nothing, over a tokenizer's tokens."""
    return [row(name, text, None, uniform_losses(tokenizer, documents).score()) for text, documents in texts.items()]


def as_table(results: Iterable[Row]) -> Table:
    """Models down, texts across; each cell bits per byte and half the width of its interval, the best in bold."""
    results = list(results)
    texts = list(dict.fromkeys(r["text"] for r in results))
    documents = {r["text"]: r["documents"] for r in results}
    table = Table("bits per byte", box=None)
    for text in texts:
        table.add_column(f"{text} ({documents[text]} document{'s' * (documents[text] != 1)})", justify="right")
    best = {text: min(r["bits_per_byte"] for r in results if r["text"] == text) for text in texts}
    for model, rule in dict.fromkeys((r["model"], r["rule"]) for r in results):
        cells = {r["text"]: r for r in results if (r["model"], r["rule"]) == (model, rule)}
        table.add_row(
            f"{model} ({rule})" if rule else model,
            *(_cell(cells[text], best[text]) if text in cells else "" for text in texts),
        )
    return table


def _cell(result: Row, best: float) -> str:
    text = f"{result['bits_per_byte']:.3f}{spread(result['low'], result['high'], result['documents'])}"
    return f"[bold]{text}[/]" if result["bits_per_byte"] == best else text
