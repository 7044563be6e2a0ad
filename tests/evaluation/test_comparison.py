"""Models side by side: exact on numbers made by hand, and the command on real text."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import load_model
from treering.errors import TreeringError
from treering.evaluation import DocumentLosses, document_losses
from treering.evaluation.comparison import (
    BITS,
    Subject,
    as_comparison_tables,
    as_csv,
    as_markdown,
    compare,
    goodness,
    sentence,
)

TEXT, TASK = Subject("ru", BITS), Subject("arc", "acc")


def losses(nats):
    return DocumentLosses(np.array(nats, float), np.full(len(nats), 100))


@pytest.fixture
def found():
    """Of three models, the first is clearly better on the text and the last on the task."""
    easy, hard = np.linspace(40, 60, 40), np.linspace(60, 90, 40)
    answers = np.arange(60) % 3 == 0
    return {
        "a": {TEXT: losses(easy), TASK: answers.astype(float)},
        "b": {TEXT: losses(hard), TASK: answers.astype(float)},
        "c": {TEXT: losses(hard * 1.0001), TASK: np.ones(60)},
    }


def test_who_beats_whom_where_fewer_and_where_more_is_better(found):
    pairs = {(p["subject"], p["first"], p["second"]): p for p in compare(found).pairs}
    text = pairs["ru", "a", "b"]
    assert text["difference"] == pytest.approx(50 / 75 - 1)
    assert text["low"] < text["difference"] < text["high"] < 0
    assert (text["better"], sentence(text)) == ("first", "a beats b")
    assert pairs["arc", "a", "b"]["difference"] == pairs["arc", "a", "b"]["low"] == 0
    assert sentence(pairs["arc", "a", "b"]) == "a and b cannot be told apart"
    assert pairs["arc", "b", "c"]["difference"] == pytest.approx(-2 / 3)
    assert sentence(pairs["arc", "b", "c"]) == "c beats b"
    # In pairs even a ten-thousandth is seen where every document has it; the cells' own intervals overlap.
    assert sentence(pairs["ru", "b", "c"]) == "b beats c"


def test_one_document_tells_nothing():
    comparison = compare({"a": {TEXT: losses([50])}, "b": {TEXT: losses([70])}})
    (pair,) = comparison.pairs
    assert (pair["better"], sentence(pair)) == ("unknown", "of a and b, one document or question tells nothing")
    assert "| -28.6% |  | of a and b" in as_markdown(comparison)


def test_cells_have_their_values_and_intervals(found):
    cells = {(c["model"], c["subject"]): c for c in compare(found).cells}
    assert cells["a", "ru"]["value"] == pytest.approx(50 / 100 / np.log(2))
    assert cells["c", "arc"] == {
        "model": "c", "subject": "arc", "measure": "acc", "value": 1.0, "low": 1.0, "high": 1.0, "count": 60
    }  # fmt: skip
    assert cells["a", "arc"]["low"] < 1 / 3 < cells["a", "arc"]["high"]
    good = goodness(compare(found).cells)
    assert (good["a", "ru", BITS], good["c", "ru", BITS]) == (1, 0)
    assert (good["a", "arc", "acc"], good["c", "arc", "acc"]) == (0, 1)


@given(st.lists(st.floats(1, 100), min_size=2, max_size=30), st.floats(0.5, 2))
def test_a_change_that_all_documents_have_alike_has_no_interval(nats, ratio):
    pair = compare({"a": {TEXT: losses(nats)}, "b": {TEXT: losses(np.array(nats) * ratio)}}).pairs[0]
    assert pair["difference"] == pytest.approx(1 / ratio - 1)
    assert pair["high"] - pair["low"] == pytest.approx(0, abs=1e-9)


def test_models_that_were_measured_on_other_things_are_refused(found):
    with pytest.raises(TreeringError, match="the same documents of arc"):
        compare(found | {"d": {TEXT: found["a"][TEXT]}})
    with pytest.raises(TreeringError, match="the same documents of ru"):
        compare(found | {"d": {TEXT: losses([1, 2]), TASK: found["a"][TASK]}})


def test_tables_say_the_same_in_every_form(found):
    comparison = compare(found)
    markdown = as_markdown(comparison)
    assert "| ru | bits per byte | 40 | **0.721 ± " in markdown
    assert "| arc | acc | +0.000 | +0.000 … +0.000 | a and b cannot be told apart |" in markdown
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [float(row["value"]) for row in rows] == [cell["value"] for cell in comparison.cells]
    values, verdicts = as_comparison_tables(comparison)
    assert (values.row_count, verdicts.row_count) == (2, 6)


def test_the_command_compares_on_text_and_tasks(expert, tokenizer, pages, tmp_path, monkeypatch):
    for seed, name in enumerate(("a", "b|c")):
        expert(seed).save_pretrained(tmp_path / name)
        tokenizers.save(tokenizer, tmp_path / name)
    lines = [json.dumps({"text": page[:200]}) for page in pages["en"][:6]]
    (tmp_path / "en.jsonl").write_text("\n".join(lines))
    question = {"input": "Which opens?", "target_scores": {"menu": 1, "dog": 0}}
    (tmp_path / "menus.json").write_text(json.dumps({"name": "menus", "examples": [question] * 3}))
    outputs = [tmp_path / f"out.{form}" for form in ("html", "md", "csv", "json")]
    written = [option for path in outputs for option in ("-o", str(path))]
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b|c"), "--text", f"en={tmp_path / 'en.jsonl'}"]
    command += ["--tasks", "bigbench_menus", "--questions", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, *written, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    losses = document_losses(load_model(tmp_path / "a"), tokenizer, [page[:200] for page in pages["en"][:6]])
    first = told["cells"][0]
    assert (first["model"], first["subject"], first["count"]) == ("a", "en", 6)
    assert first["value"] == pytest.approx(losses.score().bits_per_byte, abs=1e-6)
    assert [cell["measure"] for cell in told["cells"]] == [BITS, "acc"] * 2
    assert json.loads(outputs[3].read_text()) == told
    page = outputs[0].read_text()
    assert '<td class="best" style="background:#009e73' in page
    assert "b|c" in page
    assert "a\\|" not in page
    assert "b\\|c" in outputs[1].read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["one", "--text", "x"], "two models or more"),
        (["a=one", "a=two", "--text", "x"], "two models or more"),
        (["a=one", "b=two"], "Nothing to compare on"),
        (["a=one", "b=two", "--text", "x", "-o", "out.pdf"], "out.pdf should end in"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments, told):
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert isinstance(result.exception, TreeringError)
    assert told in str(result.exception)
