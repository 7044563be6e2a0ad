from __future__ import annotations

import numpy as np
import pytest

from treering.composition import DEFAULT_RULE, compose, pools, together
from treering.corpus import Corpus, Source, prepare
from treering.errors import TreeringError
from treering.evaluation import (
    code_switched,
    composition_losses,
    document_losses,
    measure_forgetting,
    paired_change,
)

BESIDE = "evidence:switch=0.1,together=0.1,cache=0.2"
RULES = ["mean", "evidence", "evidence:switch=0.1", BESIDE, "top_k", "gate", "adapter"]


@pytest.fixture(scope="module")
def experts(expert):
    return {"a": expert(1, 1), "b": expert(2, 2)}


@pytest.fixture(scope="module")
def joined(experts):
    return compose(experts, records={name: {"data": {"sources": [{"name": name}]}} for name in experts})


@pytest.fixture(scope="module")
def texts(pages):
    return {"a": pages["ru"][:4], "b": pages["zh"][:5]}


def test_one_pass_measures_what_each_model_measures_alone(experts, joined, tokenizer, texts):
    found = composition_losses(joined, tokenizer, texts["a"], RULES)
    for name, expert in experts.items():
        np.testing.assert_allclose(found[name].nats, document_losses(expert, tokenizer, texts["a"]).nats, rtol=1e-5)
    for rule in RULES:
        alone = document_losses(compose(experts, rule), tokenizer, texts["a"]).nats
        np.testing.assert_allclose(found[rule].nats, alone, rtol=1e-4)
    np.testing.assert_array_equal(found["oracle"].nats, np.minimum(found["a"].nats, found["b"].nats))
    assert str(joined.rule) == DEFAULT_RULE  # as it was before


def test_how_many_positions_are_joined_at_once_changes_nothing(joined, tokenizer, texts, monkeypatch):
    whole = composition_losses(joined, tokenizer, texts["a"], RULES)
    for module, name in ((pools, "POOLED_AT_ONCE"), (together, "LEVELLED_AT_ONCE")):
        monkeypatch.setattr(module, name, 2 * 4 * len(tokenizer) * 7)  # seven of two experts, four texts
    for name, losses in composition_losses(joined, tokenizer, texts["a"], RULES).items():
        np.testing.assert_allclose(losses.nats, whole[name].nats, rtol=1e-6)


def test_differences_are_against_each_texts_own_expert(experts, joined, tokenizer, texts):
    measured = measure_forgetting(joined, tokenizer, texts, ["mean"], extra={"both": texts["a"][:2] + texts["b"][:2]})
    assert [(d["text"], d["expert"], d["own"]) for d in measured.differences[:2]] == [
        ("a", "a", True),
        ("b", "b", True),
    ]
    assert [(d["text"], d["own"]) for d in measured.differences[2:]] == [("mixture", False), ("both", False)]
    losses = composition_losses(joined, tokenizer, texts["b"], ["mean"])
    expected = paired_change(losses["mean"], losses["b"])
    assert measured.differences[1]["change"] == pytest.approx(expected.change, abs=1e-5)
    assert measured.differences[1]["low"] == pytest.approx(expected.low, abs=1e-5)
    rows = {(r["model"], r["rule"], r["text"]): r for r in measured.rows}
    assert rows["joined", "mean", "mixture"]["documents"] == 9
    assert {model for model, _, _ in rows} == {"a", "b", "joined", "oracle"}


def test_a_rule_that_nothing_was_fitted_for_is_not_measured_as_if(experts, joined, tokenizer, texts):
    with pytest.raises(TreeringError, match="gate has to be fitted"):
        measure_forgetting(joined, tokenizer, texts, ["mean", "gate"])


def test_own_texts_can_be_told_and_must_be_known(joined, experts, tokenizer, texts):
    stranger = compose(experts)
    nobodys = measure_forgetting(stranger, tokenizer, texts, ["mean"])  # each is compared with the best on it
    assert [d["text"] for d in nobodys.differences] == [*texts, "mixture"]
    assert not any(d["own"] for d in nobodys.differences)
    told = measure_forgetting(stranger, tokenizer, texts, ["mean"], {"a": ["b"], "b": ["b"]})
    assert [(d["text"], d["expert"]) for d in told.differences if d["own"]] == [("b", "a"), ("b", "b")]
    base = measure_forgetting(stranger, tokenizer, texts, ["mean"], {"b": ["b"]})  # nothing is known of a
    assert [(d["text"], d["expert"]) for d in base.differences if d["own"]] == [("b", "b")]
    with pytest.raises(TreeringError, match="no text 'fr'"):
        measure_forgetting(joined, tokenizer, texts, ["mean"], {"a": ["fr"]})
    with pytest.raises(TreeringError, match="no expert 'c'"):
        measure_forgetting(joined, tokenizer, texts, ["mean"], {"c": ["a"]})


def test_switched_pages_take_each_paragraph_from_the_next_language(tokenizer, tmp_path):
    sources = [Source(path=f"embedded:{language}", name=language) for language in ("ru", "zh")]
    prepare(sources, tokenizer, tmp_path / "data", block_size=64, validation=0.02)
    pages = {}
    for row in Corpus.load(tmp_path / "data").validation:
        pages.setdefault(row["id"], {})[row["source"]] = row["text"].split("\n")
    shared = {page: found for page, found in sorted(pages.items()) if len(found) == 2}
    switched = code_switched([str(tmp_path / "data")])
    assert len(switched) == len(shared) > 10
    for text, found in zip(switched, shared.values(), strict=True):
        for i, paragraph in enumerate(text.split("\n")):
            assert paragraph == found[("ru", "zh")[i % 2]][i]


def test_one_source_alone_cannot_be_switched(tokenizer, tmp_path):
    prepare(["embedded:ru"], tokenizer, tmp_path / "data", block_size=64, validation=0.02)
    with pytest.raises(TreeringError, match="share none"):
        code_switched([str(tmp_path / "data")])
