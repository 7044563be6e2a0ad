"""Any of lm-eval's tasks, and question sets on disk, on any number of models."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.reading import printable

FEW_QUESTIONS = 30
"""Of fewer, the interval of a share spans a third of all there is."""
NORMAL_95 = 1.96
"""Standard errors to either side that bound 95% of a normal distribution."""


class TaskScore(TypedDict):
    """One measure of one model on one task, with its standard error as lm-eval has it; None where it has none.

    ``chance`` is what a guess among the choices reaches, where there are choices.
    """

    model: str
    task: str
    version: float | str | None
    shots: int | None
    measure: str
    value: float
    stderr: float | None
    chance: float | None
    count: int | None


@dataclass(frozen=True)
class TaskResults:
    """What a model reached on tasks.

    Attributes:
        scores: a row for each task, or group of tasks, and measure.
        answers: the measure of every question [question], by task and measure; what groups have is that of their tasks.
    """

    scores: list[TaskScore]
    answers: dict[tuple[str, str], np.ndarray]


def require_lm_eval() -> Any:
    """The package lm-eval, with ``treering`` among its models.

    Raises:
        TreeringError: it is not installed.
    """
    try:
        import lm_eval.evaluator
        import lm_eval.tasks

        from treering.evaluation.harness import model  # noqa: F401
    except ImportError as error:
        raise TreeringError(f"lm-eval is not installed ({error}): pip install 'treering[lm-eval]'") from None
    return lm_eval


def evaluate_tasks(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[str],
    data: str | os.PathLike[str] | None = None,
    shots: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 1234,
) -> TaskResults:
    """Score a model on tasks as lm-eval defines them.

    Args:
        name: what the rows call the model.
        tasks: names of lm-eval's tasks, groups and tags, or patterns as ``mmlu_*``; ``treering_small``, or one of its
            tasks, where large question sets would stand at chance; with ``data`` also ``bigbench_NAME`` for each
            question set there.
        data: a directory of question sets in BIG-bench's form (``NAME.json``, ``NAME.json.xz``, ``NAME/task.json``)
            and of data sets of the hub (``ORGANISATION/NAME``, as ``hf download --repo-type dataset`` leaves them),
            which are used instead of the network.
        shots: examples before each question, instead of the tasks' own numbers.
        limit: questions of each task at most, the first ones.
        seed: of the examples.

    Raises:
        TreeringError: lm-eval is not installed, there is no such task, or its questions cannot be had.
    """
    lm_eval = require_lm_eval()
    from treering.evaluation.harness import bigbench
    from treering.evaluation.harness.model import TreeringLM

    names, own, manager = _known(tasks, data)
    directory = Path(data) if data is not None else None
    with _quiet():
        chosen = [bigbench.task(name, own[name]) if name in own else name for name in names]
        with inside(directory):
            loaded = [_loaded(manager, spec) for spec in chosen]
        results = lm_eval.simple_evaluate(
            TreeringLM(model, tokenizer, device=device),
            tasks=[task for found in loaded for task in (found if isinstance(found, list) else [found])],
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return TaskResults(_rows(name, results), _answers(results))


def require_tasks(tasks: Sequence[str], data: str | os.PathLike[str] | None = None) -> None:
    """Refuse names that no task has, before any model is loaded; see `evaluate_tasks`.

    Raises:
        TreeringError: lm-eval is not installed, or there is no such task or directory.
    """
    _known(tasks, data)


def _known(tasks: Sequence[str], data: str | os.PathLike[str] | None) -> tuple[list[str], Mapping[str, Path], Any]:
    """The tasks that are meant, the question sets on disk, and lm-eval's manager of tasks."""
    require_lm_eval()
    from treering.evaluation.harness import bigbench

    directory = Path(data) if data is not None else None
    if directory is not None and not directory.is_dir():
        raise TreeringError(f"{data} is no directory of data sets.")
    own = bigbench.question_sets(directory) if directory else {}
    manager = _manager()
    return _matching(tasks, own, manager.all_tasks), own, manager


@cache
def _manager() -> Any:
    """lm-eval's and our small tasks by name, indexed once: that takes lm-eval six seconds."""
    with _quiet():
        return require_lm_eval().tasks.TaskManager(include_path=Path(__file__).parent / "small")


def too_few_questions(rows: Sequence[TaskScore]) -> str | None:
    """What to say of tasks whose questions are so few that their scores tell nothing."""
    few = {row["task"]: row["count"] for row in rows if row["count"] is not None and row["count"] < FEW_QUESTIONS}
    if not few:
        return None
    told = ", ".join(f"{task} {count:,}" for task, count in few.items())
    return (
        f"fewer than {FEW_QUESTIONS} questions hardly tell one model from another: {told}; raise or leave out --limit"
    )


def as_tasks_table(rows: Sequence[TaskScore]) -> Table:
    """The scores as people read them."""
    table = Table("model", "task", "version", "shots", "measure", box=None)
    for column in ("value", "95% interval", "chance", "questions"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            row["task"],
            "" if row["version"] is None else f"{row['version']}",
            "" if row["shots"] is None else f"{row['shots']}",
            row["measure"],
            f"{row['value']:.4f}",
            "" if row["stderr"] is None else f"± {NORMAL_95 * row['stderr']:.4f}",
            "" if row["chance"] is None else f"{row['chance']:.4f}",
            "" if row["count"] is None else f"{row['count']:,}",
        )
    return table


def _matching(patterns: Sequence[str], own: Mapping[str, Path], known: Sequence[str]) -> list[str]:
    """The tasks that are meant, each once; question sets on disk go before lm-eval's tasks of the same name.

    Raises:
        TreeringError: nothing has such a name; says which names come near.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in own if fnmatch(name, pattern)] or [name for name in known if fnmatch(name, pattern)]
        if not names:
            near = [name for name in [*own, *known] if pattern.split("_")[0].lower() in name.lower()][:8]
            told = f" Near it are {', '.join(near)}." if near else ""
            raise TreeringError(
                f"There is no task {printable(pattern)}.{told} treering lm-eval ls tasks lists those of lm-eval; "
                "question sets of BIG-bench in --data DIR are bigbench_NAME."
            )
        found |= dict.fromkeys(names)
    return list(found)


def _loaded(manager: Any, spec: str | dict[str, Any]) -> Any:
    """A task with its questions, a group, or the tasks of a tag."""
    try:
        return manager._load_spec(spec)
    except Exception as error:  # datasets, the hub and httpx each raise their own
        raise unavailable(spec if isinstance(spec, str) else spec["task"], error) from error


def unavailable(name: str, error: Exception, place: str = "ORGANISATION/NAME") -> TreeringError:
    """What to say where the questions of a task, which lie at a ``place`` of the hub, cannot be had."""
    told = [*str(error).splitlines(), type(error).__name__]
    return TreeringError(
        f"The questions of {name} cannot be had: {printable(told[0], 300)}\nWithout a network, fetch them elsewhere, "
        f"hf download --repo-type dataset {place} --local-dir DIR/{place}, and give --data DIR."
    )


def _rows(name: str, results: Mapping[str, Any]) -> list[TaskScore]:
    rows: list[TaskScore] = []
    guessed = {task: _chance(results["configs"][task], own) for task, own in results.get("samples", {}).items()}
    for task, values in results["results"].items():
        counts = results.get("n-samples", {}).get(task)
        for key, value in values.items():
            measure, _, kind = key.partition(",")
            if not kind or measure.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{measure}_stderr,{kind}")
            rows.append(
                {
                    "model": name,
                    "task": task,
                    "version": results["versions"].get(task),
                    "shots": results["n-shot"].get(task),
                    "measure": measure if kind == "none" else f"{measure} ({kind})",
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None,
                    "chance": guessed.get(task) if measure in ("acc", "acc_norm") else None,
                    "count": counts["effective"] if counts else None,
                }
            )
    return rows


def _chance(config: Mapping[str, Any], questions: Sequence[Mapping[str, Any]]) -> float | None:
    """How often a guess is right, mean over a task's questions; None where they leave no choice.

    Each choice was a request of its own; those that ask for mutual information make two of each.
    """
    if config["output_type"] != "multiple_choice":
        return None
    each = 2 if any(measure["metric"] == "acc_mutual_info" for measure in config.get("metric_list") or []) else 1
    right = [len(own["target"]) if isinstance(own["target"], list) else 1 for own in questions]
    shares = [count * each / len(own["resps"]) for count, own in zip(right, questions, strict=True)]
    return float(np.mean(shares)) if shares else None


def _answers(results: Mapping[str, Any]) -> dict[tuple[str, str], np.ndarray]:
    """What each question scored, in measures whose value is its mean."""
    found: dict[tuple[str, str], list[float]] = {}
    for task, questions in results.get("samples", {}).items():
        for question in questions:
            for measure in question["metrics"]:
                if isinstance(value := question[measure], int | float):
                    name = measure if question["filter"] == "none" else f"{measure} ({question['filter']})"
                    found.setdefault((task, name), []).append(float(value))
    return {key: np.array(values) for key, values in found.items()}


@contextlib.contextmanager
def inside(directory: Path | None) -> Iterator[None]:
    """Work in a directory, where ``datasets`` finds ``ORGANISATION/NAME`` before it asks the hub."""
    before = Path.cwd()
    if directory is not None:
        os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells much of what it does, and warns of a model that is loaded already."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
