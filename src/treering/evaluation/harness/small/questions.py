"""The questions of the tasks in this folder, from help pages that ``data prepare`` holds out by default."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import datasets

from treering.corpus import read_documents, split_of
from treering.errors import TreeringError
from treering.evaluation.choice import Question, continuations, recalls, translations

HELD_OUT = 0.05
"""Share of the pages; a corpus that holds out more, holds out these too."""


def dataset(
    kind: str, language: str, into: str = "", fingerprint: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """The questions of a task, if they are those that its fingerprint names.

    Raises:
        TreeringError: they are not.
    """
    questions = [asdict(question) for question in made(kind, language, into)]
    found = hashlib.sha256(json.dumps(questions, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()
    if fingerprint is not None and found != fingerprint:
        raise TreeringError(
            f"The questions of {kind} in {language} have the fingerprint {found}, not {fingerprint}: they were made by "
            "another version of Treering or of NumPy, and their scores are not comparable."
        )
    return {"test": datasets.Dataset.from_list(questions)}


def made(kind: str, language: str, into: str = "") -> list[Question]:
    """The questions of a kind: continuation, recall, or translation ``into`` another language."""
    pages = _held_out(language)
    if kind == "translation":
        return translations(pages, _held_out(into))
    return continuations(list(pages.values())) if kind == "continuation" else recalls(list(pages.values()))


def _held_out(language: str) -> dict[str, str]:
    pages = read_documents(f"embedded:{language}")
    return {page.id: page.text for page in pages if split_of(page.id, HELD_OUT, 0.0) == "validation"}
