"""lm-eval asks our server as it asks any other: the scores are those of the model itself."""

from __future__ import annotations

from functools import cache, partial

import datasets
import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.evaluation.harness.model import TreeringLM
from treering.serving.served import Served

QUESTIONS = [
    ("The menu opens", [" when you click", " if", " никогда"], 1),
    ("Choose one: a or b.", [" a", " b", " c or nothing of all that"], 0),
    ("", ["Whole text without a context.", "x"], 0),
    ("菜单 🙂", ["🙂", " 菜单", "</s>"], 2),
    ("To open this dialog, choose", [" Tools", " Edit", " Format"], 0),
]


def dataset(rows, **_):
    return {"test": datasets.Dataset.from_list(rows)}


def tasks(pages) -> list[dict]:
    """A task of each of the three kinds of question that lm-eval asks."""
    asked = [{"question": q, "choices": c, "best": best} for q, c, best in QUESTIONS]
    texts = [{"text": pages[language][n][:60]} for language in ("en", "ru") for n in range(3)]
    common = {"test_split": "test", "target_delimiter": "", "metadata": {"version": 1.0}}
    choices = {
        "task": "choices",
        "custom_dataset": partial(dataset, asked),
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "best",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    whole = {
        "task": "whole",
        "custom_dataset": partial(dataset, texts),
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    written = {
        "task": "written",
        "custom_dataset": partial(dataset, [row for row in asked if row["question"]]),
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "question",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [task | common for task in (choices, whole, written)]


@cache
def manager() -> TaskManager:
    """What knows lm-eval's own tasks; it reads thousands of files for that."""
    return TaskManager()


def found(model, pages, **arguments):
    """What a model answered, by task and question, and its scores."""
    results = lm_eval.simple_evaluate(model, tasks=tasks(pages), task_manager=manager(), bootstrap_iters=0, **arguments)
    answers = {
        name: [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in results["samples"].items()
    }
    return answers, results["results"]


@pytest.fixture(scope="module")
def place(directory, tokenizer, tmp_path_factory):
    """Where the tokenizer is, as training leaves it beside a model."""
    place = tmp_path_factory.mktemp("served")
    tokenizers.save(tokenizer, place, 96, begins_with_separator=True)
    return place


@pytest.mark.parametrize(("rule", "batch"), [("evidence:switch=0.01", 4), ("mean", 1)])
def test_scores_over_the_network_are_those_of_the_direct_way(directory, place, pages, serving, rule, batch):
    tokenizer = tokenizers.load(place)
    direct, scores = found(TreeringLM(load_model(directory, rule=rule), tokenizer, device="cpu"), pages)
    with serving(Served("joined", load_model(directory), tokenizer)) as client:
        asked = {"model": f"joined:{rule}", "base_url": f"{client.base_url}completions", "tokenizer": str(place)}
        asked |= {"tokenizer_backend": "huggingface", "max_length": 96, "batch_size": batch}
        over, same = found("local-completions", pages, model_args=asked)
    for ours, theirs in zip(direct["choices"], over["choices"], strict=True):
        assert [nats for nats, _ in theirs] == pytest.approx([nats for nats, _ in ours], rel=1e-4, abs=1e-4)
        assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
    for ours, theirs in zip(direct["whole"], over["whole"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    assert over["written"] == direct["written"]
    for name, measures in scores.items():
        for measure, value in measures.items():
            assert same[name][measure] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
