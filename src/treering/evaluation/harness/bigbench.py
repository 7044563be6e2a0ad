"""Question sets in BIG-bench's own form (``task.json``) as tasks of lm-eval.

The form: https://github.com/google/BIG-bench/blob/main/docs/doc.md#creating-a-json-task (Apache-2.0).
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from pydantic import Field, TypeAdapter, ValidationError

from treering.errors import TreeringError
from treering.reading import printable
from treering.recipe import Schema

LARGEST = 2**28
"""Bytes of a question set, unpacked."""
WRITTEN = 128
"""Tokens of a written answer at most."""


class Example(Schema, extra="ignore"):
    """A question, and what is right: written answers, or choices with their scores."""

    input: str
    target: str | list[str] | None = None
    target_scores: dict[str, float] | None = Field(None, min_length=2)


class QuestionSet(Schema, extra="ignore"):
    """A ``task.json``."""

    name: str
    examples: list[Example] = Field(min_length=1)
    task_prefix: str = ""
    example_input_prefix: str = "\nQ: "
    example_output_prefix: str = "\nA: "
    choice_prefix: str = "\n  choice: "
    append_choices_to_input: bool = True


def question_sets(directory: Path) -> dict[str, Path]:
    """The files of a directory that are question sets, by the name of their task: ``bigbench_NAME``."""
    found = {path: path.parent.name for path in directory.glob("*/task.json")}
    found |= {path: path.name.split(".json")[0] for path in [*directory.glob("*.json"), *directory.glob("*.json.xz")]}
    return {f"bigbench_{name}": path for path, name in sorted(found.items())}


def task(name: str, path: Path) -> dict[str, Any]:
    """The question set as a task: of choices, as ``multiple_choice_grade`` has it; of written answers, exact match.

    The choices that a question lists are in alphabetical order, so that the order does not tell which is right.

    Raises:
        TreeringError: the file is damaged, or no question set.
    """
    own = _read(path)
    asks = all(example.target_scores for example in own.examples)
    rows = [_row(own, example, asks) for example in own.examples]
    common = {
        "task": name,
        "custom_dataset": partial(_dataset, rows),
        "test_split": "test",
        "doc_to_text": "question",
        "target_delimiter": "",
        "metadata": {"version": 1.0},
    }
    if asks:
        return common | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "best",
            "process_results": _grade,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    return common | {
        "output_type": "generate_until",
        "doc_to_target": "answers",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": WRITTEN, "do_sample": False},
        "process_results": _match,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _dataset(rows: Sequence[Mapping[str, Any]], **_: Any) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list([dict(row) for row in rows])}


def _row(own: QuestionSet, example: Example, asks: bool) -> dict[str, Any]:
    scores = example.target_scores or {}
    listed = "".join(own.choice_prefix + choice for choice in sorted(scores)) if own.append_choices_to_input else ""
    asked = f"{own.task_prefix}{own.example_input_prefix}{example.input}{listed}{own.example_output_prefix}"
    if asks:
        return {
            "question": asked,
            "choices": list(scores),
            "scores": list(scores.values()),
            "best": max(range(len(scores)), key=list(scores.values()).__getitem__),
        }
    target = example.target
    answers = [choice for choice, score in scores.items() if score > 0] if target is None else target
    return {"question": asked, "answers": [answers] if isinstance(answers, str) else answers}


def _grade(row: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The score of the choice that is likeliest."""
    likelihoods = [likelihood for likelihood, _ in results]
    return {"acc": row["scores"][max(range(len(likelihoods)), key=likelihoods.__getitem__)]}


def _match(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": float(results[0].strip() in [answer.strip() for answer in row["answers"]])}


def _read(path: Path) -> QuestionSet:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        content = path.read_bytes()
        if path.suffix == ".xz":
            unpacker = lzma.LZMADecompressor()
            content = unpacker.decompress(content, max_length=LARGEST)
            if not unpacker.eof:
                raise ValueError(f"it is cut short, or has more than {LARGEST:,} bytes")
        return TypeAdapter(QuestionSet).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TreeringError(
            f"{printable(str(path))} is no question set of BIG-bench: {printable(where)}: {printable(first['msg'])}"
        ) from None
    except (ValueError, lzma.LZMAError) as error:
        raise TreeringError(f"{printable(str(path))} cannot be read: {printable(str(error))}.") from None
