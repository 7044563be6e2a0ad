"""lm-eval's tasks on our models, and question sets on disk as its tasks."""

from treering.evaluation.harness.tasks import (
    TaskResults,
    TaskScore,
    as_tasks_table,
    evaluate_tasks,
    require_lm_eval,
    require_tasks,
    too_few_questions,
)

__all__ = [
    "TaskResults",
    "TaskScore",
    "as_tasks_table",
    "evaluate_tasks",
    "require_lm_eval",
    "require_tasks",
    "too_few_questions",
]
