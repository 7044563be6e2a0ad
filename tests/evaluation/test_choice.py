from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.errors import TreeringError
from treering.evaluation import Question, abilities, choose, continuations, document_losses, recalls, translations
from treering.tokenizer import encode, separator


@pytest.fixture
def model(expert):
    return expert(0, 2)


def test_the_next_paragraph_is_the_next_one_and_the_others_are_from_elsewhere(pages):
    questions = continuations(pages["ru"])
    assert len(questions) > 50
    for question in questions:
        right = question.choices[question.answer]
        following = {p[len(question.context) :].split("\n")[0] for p in pages["ru"] if p.startswith(question.context)}
        assert right in following and len(set(question.choices)) == 4
        for choice in question.choices:
            assert 20 <= len(choice) <= 200
            assert any(choice in page.split("\n") for page in pages["ru"])
    places = np.bincount([question.answer for question in questions], minlength=4)
    assert places.min() > len(questions) / 10  # the answer stands anywhere
    assert continuations(pages["ru"]) == questions and continuations(pages["ru"], seed=1) != questions


def test_a_recalled_value_is_the_one_beside_the_name(pages):
    questions = recalls(pages["en"], 50)
    assert len(questions) == 50
    for question in questions:
        *facts, asked = question.context.split("\n")
        stated = dict(fact.split(" — ") for fact in facts)
        assert len(stated) == 6
        assert stated[asked.removesuffix(" — ")] == question.choices[question.answer]
        assert set(question.choices) <= set(stated.values()) and len(set(question.choices)) == 4


def test_too_little_text_makes_no_question():
    assert continuations(["one\ntwo"]) == recalls(["one two"]) == []


@torch.no_grad()
def test_the_choice_is_the_likeliest_for_its_length(model, tokenizer, pages):
    questions = continuations(pages["en"])[:6]
    start, limit = separator(tokenizer), model.config.max_position_embeddings
    expected = []
    for question in questions:
        scores = []
        for choice in question.choices:
            own = encode(tokenizer, [choice])[0][:limit]
            before = [start, *encode(tokenizer, [question.context])[0]]
            before = before[-(limit + 1 - len(own)) :]
            ids = torch.tensor([before + own])
            log = model(ids[:, :-1]).logits.log_softmax(-1)[0, len(before) - 1 :]
            scores.append(log.gather(1, ids[0, len(before) :, None]).sum().item() / len(choice.encode()))
        expected.append(int(np.argmax(scores)))
    assert choose(model, tokenizer, questions).tolist() == expected


def test_a_choice_longer_than_the_context_is_still_scored(model, tokenizer):
    long = "слово " * 200
    assert choose(model, tokenizer, [Question("x\n", (long, "a", "b", "c"), 1)]).shape == (1,)


def test_abilities_have_intervals_and_an_untrained_model_is_at_chance(model, tokenizer, pages):
    found = abilities("m", model, tokenizer, {"ru": pages["ru"]})
    assert [a["measure"] for a in found] == ["bits per byte", "continuation", "recall"]
    assert all(a["low"] <= a["value"] <= a["high"] for a in found)
    assert found[0]["value"] == pytest.approx(
        document_losses(model, tokenizer, pages["ru"]).score().bits_per_byte, 1e-3
    )
    assert 0.1 < found[2]["value"] < 0.4
    with pytest.raises(TreeringError, match="no text"):
        abilities("m", model, tokenizer, {})


def test_abilities_on_few_documents_are_those_of_the_first_ones_and_show_how_far_they_are(model, tokenizer, pages):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    found = abilities("m", model, tokenizer, {"[ru]": pages["ru"]}, most=9, console=console)
    assert [a["count"] for a in found] == [9, len(continuations(pages["ru"][:9])), 9]
    assert found[0]["value"] == pytest.approx(
        document_losses(model, tokenizer, pages["ru"][:9]).score().bits_per_byte, abs=1e-4
    )
    shown = console.file.getvalue()
    assert all(f"[ru]: {measure}" in shown for measure in ("bits per byte", "continuation", "recall"))


def test_the_command_prints_a_table_or_json(model, tokenizer, pages, tmp_path):
    model.save_pretrained(tmp_path / "m")
    tokenizers.save(tokenizer, tmp_path / "m")
    (tmp_path / "ru.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages["ru"][:20]))
    arguments = ["eval", "abilities", f"small={tmp_path / 'm'}", "--text", f"ru={tmp_path / 'ru.jsonl'}"]
    table = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert table.exit_code == 0 and "recall (200)" in table.stdout and "small" in table.stdout
    again = [*arguments, "--json", "-o", str(tmp_path / "page.html")]
    rows = json.loads(CliRunner().invoke(app, again, catch_exceptions=False).stdout)
    assert "ru: recall (200)" in (tmp_path / "page.html").read_text()
    assert {row["measure"] for row in rows} == {"bits per byte", "continuation", "recall"}


def test_translations_ask_for_the_paragraph_that_corresponds():
    texts = {f"p{n}": "\n".join(f"paragraph {n}.{i} of the page, long enough" for i in range(6)) for n in range(5)}
    others = {name: text.upper() for name, text in texts.items()} | {"p4": "too few paragraphs to correspond"}
    questions = translations(texts, others)
    assert len(questions) == 4 * 4
    for question in questions:
        page, place = question.context.split()[1].split(".")
        assert question.choices[question.answer] == question.context.strip().upper()
        assert len(set(question.choices)) == 4
        assert all(f" {page}." not in choice for i, choice in enumerate(question.choices) if i != question.answer)
        assert place.isdigit()
    assert translations(texts, others) == questions
    assert translations(texts, others, seed=1) != questions
