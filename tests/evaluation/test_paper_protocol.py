"""The paper's protocol: prompts to the letter, the first character as the answer, runs with their margin."""

from __future__ import annotations

import json
import math
import statistics

import datasets
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose
from treering.errors import TreeringError
from treering.evaluation.harness import paper
from treering.evaluation.harness.paper import EXAMS, PUBLISHED, paper_protocol
from treering.tokenizer import encode, separator

MMLU = [
    {"question": f"What is {n} + {n}?", "choices": [f"{2 * n}", "0", "1", "7"], "answer": n % 4, "subject": "sums"}
    for n in range(12)
]
ARC = [
    {"id": "a", "question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"}
]
SQUAD = [
    {"id": "s", "title": "t", "context": "It is red.", "question": "What colour?", "answers": {"text": ["red"]}},
    {"id": "l", "title": "t", "context": "c", "question": "q", "answers": {"text": ["much too long"]}},
    {"id": "n", "title": "t", "context": "c", "question": "q", "answers": {"text": []}},
]


@pytest.fixture
def hub(tmp_path):
    """Data sets as a snapshot of the hub has them."""

    def put(place, configuration, split, rows):
        folder = tmp_path / "hub" / place
        (folder / "data").mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000.parquet")
        named = (
            f"configs:\n- config_name: {configuration}\n  data_files:\n  - split: {split}\n    path: data/{split}-*\n"
        )
        (folder / "README.md").write_text(f"---\n{named}---\n")

    put("cais/mmlu", "all", "test", MMLU)
    put("allenai/ai2_arc", "ARC-Easy", "test", ARC)
    put("rajpurkar/squad_v2", "squad_v2", "validation", SQUAD)
    put("Helsinki-NLP/opus-100", "en-ru", "test", [{"translation": {"en": "Open it", "ru": "Откройте"}}] * 3)
    return tmp_path / "hub"


def test_prompts_are_the_papers():
    assert EXAMS["paper_mmlu"].ask(MMLU[1]) == ("Question: What is 1 + 1?\nOptions: A) 2 B) 0 C) 1 D) 7\nAnswer:")
    assert EXAMS["paper_arc_easy"].ask(ARC[0]) == "Question: Which?\nOptions:\nA) x\nB) y\nC) z\nAnswer:"
    assert EXAMS["paper_squad"].ask(SQUAD[0]) == "Context: It is red.\nQuestion: What colour?\nAnswer:"
    assert [EXAMS["paper_squad"].ask(row) for row in SQUAD[1:]] == [None, None]
    row = {"translation": {"en": "Open it", "ru": "Откройте"}}
    assert EXAMS["paper_bleu_en_ru"].ask(row) == "Translate from English to Russian:\nOpen it\nAnswer:"
    assert EXAMS["paper_bleu_ru_en"].ask(row) == "Translate from Russian to English:\nОткройте\nAnswer:"
    boolq = {"passage": "p", "question": "q", "answer": True}
    assert EXAMS["paper_boolq"].ask(boolq) == "Context: p\nQuestion: q\nAnswer (True/False):"
    assert [exam.tokens(SQUAD[0]) for exam in (EXAMS["paper_squad"],)] == [3]


@pytest.mark.parametrize(
    ("exam", "row", "written", "grade"),
    [
        ("paper_mmlu", MMLU[1], "B", 100.0),
        ("paper_mmlu", MMLU[1], " b)", 100.0),
        ("paper_mmlu", MMLU[1], "A", 0.0),
        ("paper_mmlu", MMLU[1], "E", None),
        ("paper_mmlu", MMLU[1], "", None),
        ("paper_arc_easy", ARC[0], "B", 100.0),
        ("paper_arc_easy", ARC[0], "D", None),
        ("paper_squad", SQUAD[0], "The RED one", 100.0),
        ("paper_squad", SQUAD[0], "blue", 0.0),
        ("paper_boolq", {"answer": False}, " false", 100.0),
        ("paper_boolq", {"answer": False}, "True", 0.0),
        ("paper_boolq", {"answer": False}, "perhaps", None),
        ("paper_bleu_en_ru", {"translation": {"ru": "Откройте меню и файл"}}, " откройте меню и файл\nmore", 100.0),
    ],
)
def test_grades(exam, row, written, grade):
    found = EXAMS[exam].grade(row, written)
    assert found is None if grade is None else found == pytest.approx(grade)


def test_a_composition_sits_an_exam_as_a_loop_of_greedy_decoding_would(expert, tokenizer, hub):
    model = compose({"a": expert(1), "b": expert(2)}, "evidence")
    (row,) = paper_protocol("m", model, tokenizer, ["paper_mmlu"], hub, "best_bvv_moe", runs=4, samples=5)
    grades = []
    for question in MMLU:
        ids = [separator(tokenizer), *encode(tokenizer, [EXAMS["paper_mmlu"].ask(question)])[0]][-95:]
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        grades.append(EXAMS["paper_mmlu"].grade(question, tokenizer.decode([best], skip_special_tokens=True)))
    drawn = [np.random.default_rng(run).choice(12, 5, replace=False) for run in range(4)]
    means = [statistics.mean(grades[i] or 0.0 for i in run) for run in drawn]
    asked = {i for run in drawn for i in run.tolist()}
    assert row == {
        "model": "m", "exam": "paper_mmlu", "value": pytest.approx(statistics.mean(means)),
        "margin": pytest.approx(1.96 * statistics.stdev(means) / math.sqrt(4), abs=1e-4), "runs": 4, "samples": 5,
        "chance": 25.0, "published": 23.44, "unanswered": statistics.mean(grades[i] is None for i in asked),
    }  # fmt: skip


def test_answers_in_a_batch_are_those_of_each_prompt_alone(expert, tokenizer):
    model = expert(4)
    prompts = ["Answer:", "A much longer question than the other one\nAnswer:", "word " * 200 + "Answer:"]
    together = paper._answers(model, tokenizer, prompts, [4, 2, 4])
    alone = [paper._answers(model, tokenizer, [p], [n])[0] for p, n in zip(prompts, [4, 2, 4], strict=True)]
    assert together == alone


def test_the_command_shows_chance_and_the_authors_figure(expert, tokenizer, hub, tmp_path):
    expert(1).save_pretrained(tmp_path / "model")
    tokenizers.save(tokenizer, tmp_path / "model")
    exams = ["paper_mmlu", "paper_arc_easy", "paper_squad", "paper_bleu_en_ru"]
    command = ["eval", "paper", str(tmp_path / "model"), "--exams", ",".join(exams), "--data", str(hub)]
    result = CliRunner().invoke(
        app, [*command, "--like", "max_bvv_zh", "--runs", "2", "--json", "-o", str(tmp_path / "p.html")]
    )
    assert result.exit_code == 0, result.output
    assert "<h1>The paper&#39;s own protocol</h1>" in (tmp_path / "p.html").read_text(encoding="utf-8")
    rows = {row["exam"]: row for row in json.loads(result.stdout)}
    assert [rows[exam]["published"] for exam in exams] == [24.72, 21.93, 17.66, 1.28]
    assert [rows[exam]["chance"] for exam in exams] == [25.0, 25.0, None, None]
    assert [rows[exam]["samples"] for exam in exams] == [12, 1, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"exams": ["mmlu"]}, "There is no exam mmlu"),
        ({"like": "gpt"}, "published no gpt"),
        ({"exams": ["paper_csense"]}, "hf download --repo-type dataset tau/commonsense_qa"),
    ],
)
def test_what_cannot_be_asked_is_said(expert, tokenizer, hub, arguments, told, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TreeringError, match=told):
        paper_protocol("m", expert(1), tokenizer, **{"exams": ["paper_mmlu"], "data": hub} | arguments)


def test_the_authors_table_is_whole():
    assert len(PUBLISHED) == 17
    assert all(len(figures) in (5, 9) for figures in PUBLISHED.values())
    assert {exam.column for exam in EXAMS.values()} - {None} == set(PUBLISHED["best_bvv_ru"])
