"""Which experts are of one kind: by losses made by hand, by any losses, and by the command on trained models."""

from __future__ import annotations

import inspect
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.cli import compose as commands
from treering.composition import compose_directories, load_model, rule
from treering.composition.posterior import posterior
from treering.composition.together import RATE
from treering.corpus import Source, prepare
from treering.errors import TreeringError
from treering.evaluation import DocumentLosses, composition_losses, find_kinds, held_out_texts, kinds_of, paired_change
from treering.evaluation.kinds import LEAST, SHARE, TOGETHER, best_text, linked, middle, says
from treering.tokenizer import encode
from treering.training import ExpertRecipe, train_expert


def table(nats, tokens=500, documents=9):
    """Losses by text and expert from nats a token, the same in every document, and the tokens of the documents."""
    counts = np.full(documents, tokens)
    losses = {
        text: {name: DocumentLosses(each * counts.astype(float), 3 * counts) for name, each in found.items()}
        for text, found in nats.items()
    }
    return losses, dict.fromkeys(nats, counts)


OWNERS = {
    "ru": {"ru-1": 3.0, "ru-2": 3.05, "en-1": 8.0, "en-2": 8.2, "zh": 7.9},
    "en": {"ru-1": 7.0, "ru-2": 7.1, "en-1": 3.2, "en-2": 3.1, "zh": 7.0},
    "zh": {"ru-1": 7.5, "ru-2": 7.5, "en-1": 8.0, "en-2": 8.2, "zh": 4.0},
}
OWN = {"ru-1": ["ru"], "en-1": ["en"], "zh": ["zh"], "ru-2": ["ru"], "en-2": ["en"]}


# ---------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.3, 4.0])
@pytest.mark.parametrize("tokens", [1, 7, 200, 1500])
def test_a_say_is_the_weight_that_the_rule_itself_would_leave(gap, tokens):
    said = -RATE * torch.tensor([2.0, 2.0 + gap], dtype=torch.float64)[:, None, None].expand(2, 1, tokens)
    expected = posterior(said, torch.full((2,), 0.5, dtype=torch.float64).log(), None, SHARE)[1, 0, -1].exp().item()
    one, other, counts = np.array([2.0 * tokens]), np.array([(2.0 + gap) * tokens]), np.array([tokens])
    assert says(one, other, counts).item() == pytest.approx(expected, abs=1e-5)
    np.testing.assert_array_equal(says(one, other, counts), says(other, one, counts))


def test_the_share_is_that_of_the_rule_that_is_advised():
    assert rule(TOGETHER).parameters["together"] == SHARE
    assert inspect.signature(commands.kinds).parameters["least"].default == LEAST
    # What the module's first lines say of it: 0.1 in the long run by 0.91 nats a token, 0.03 by 4.
    gaps = np.array([0.0, 0.91, 4.0])
    np.testing.assert_allclose(says(np.zeros(3), 2000 * gaps, np.full(3, 2000)), [0.5, 0.1, 0.027], atol=0.001)


def test_owners_of_one_language_are_of_one_kind():
    losses, tokens = table(OWNERS)
    found = kinds_of(losses, tokens, OWN)
    assert found.kinds == [["ru-1", "ru-2"], ["en-1", "en-2"], ["zh"]]  # in the experts' order
    assert found.heard == {"ru": ["ru-1", "ru-2"], "en": ["en-1", "en-2"], "zh": ["zh"]}
    assert len(found.pairs) == 10 and found.doubtful == []
    (pair,) = (pair for pair in found.pairs if set(pair["experts"]) == {"ru-1", "ru-2"})
    exact = says(np.array([3.0 * 500]), np.array([3.05 * 500]), np.array([500])).item()
    assert (pair["text"], pair["documents"]) == ("ru", 9) and pair["say"] == pytest.approx(exact, abs=1e-4)
    rows = {(row["model"], row["text"]): row for row in found.rows}
    assert rows["zh", "en"]["bits_per_byte"] == pytest.approx(7.0 / 3 / math.log(2), abs=1e-4)


def test_who_shares_one_of_several_languages_is_heard_there_and_not_of_one_kind():
    losses, tokens = table(
        {"ru": {"a": 3.0, "b": 8.0}, "zh": {"a": 8.0, "b": 3.0}, "en": {"a": 4.0, "b": 4.1}},
    )
    found = kinds_of(losses, tokens, {"a": ["ru", "en"], "b": ["zh", "en"]})
    assert found.kinds == [["a"], ["b"]]
    assert found.heard == {"ru": ["a"], "zh": ["b"], "en": ["a", "b"]}


def test_an_expert_without_a_text_of_its_own_is_placed_by_the_one_on_which_it_is_best():
    losses, tokens = table(OWNERS)
    assert {name: best_text(losses, name) for name in OWN} == {name: its[0] for name, its in OWN.items()}
    nobodys = kinds_of(losses, tokens, {name: [] for name in OWN})
    told = kinds_of(losses, tokens, OWN)
    assert (nobodys.own, nobodys.kinds, nobodys.pairs) == (told.own, told.kinds, told.pairs)


def test_whom_a_third_links_is_of_one_kind_and_the_pair_says_how_far_they_are_apart():
    losses, tokens = table({"x": {"a": 3.0, "b": 3.7, "c": 4.4}})
    found = kinds_of(losses, tokens, {"a": ["x"], "b": ["x"], "c": ["x"]})
    assert found.kinds == [["a", "b", "c"]]
    says_of = {pair["experts"]: pair["say"] for pair in found.pairs}
    assert says_of["a", "b"] >= LEAST and says_of["b", "c"] >= LEAST and says_of["a", "c"] < LEAST
    assert kinds_of(losses, tokens, {"a": ["x"], "b": ["x"], "c": ["x"]}, least=0.5).kinds == [["a"], ["b"], ["c"]]


def test_a_few_documents_of_another_language_change_nothing_but_make_it_doubtful_where_they_are_many():
    counts, same, other = np.full(9, 400), np.full(9, 1200.0), np.full(9, 1200.0)
    other[:3] += 2000  # a third of the pages is half in another language

    def found(nats):
        losses = {"x": {"a": DocumentLosses(same, counts), "b": DocumentLosses(nats, counts)}}
        return kinds_of(losses, {"x": counts}, {"a": ["x"], "b": ["x"]})

    assert found(other).kinds == [["a", "b"]]
    assert [pair["experts"] for pair in found(other).doubtful] == [("a", "b")]
    other[:5] += 2000
    assert found(other).kinds == [["a"], ["b"]]
    assert found(same).doubtful == []


def test_the_interval_of_a_median_holds_it_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    for count in (20, 61):
        drawn = [middle(rng.exponential(size=count)) for _ in range(2000)]
        held = np.mean([low <= math.log(2) <= high for _, low, high in drawn])
        assert 0.94 <= held <= 0.98
    assert middle(np.array([3.0])) == (3.0, 3.0, 3.0)
    assert middle(np.array([4.0, 1.0])) == (2.5, 1.0, 4.0)  # of few, all that there is


# ---------------------------------------------------------------------------------------------- of any losses

NAMES = "abcde"
TEXTS = "xyz"


@st.composite
def measured(draw):
    """Losses of up to five experts on up to three texts, their tokens, and own texts, of which some have none."""
    names, texts = NAMES[: draw(st.integers(1, 5))], TEXTS[: draw(st.integers(1, 3))]
    losses, tokens = {}, {}
    for text in texts:
        count = draw(st.integers(1, 4))
        tokens[text] = np.array(draw(st.lists(st.integers(1, 60), min_size=count, max_size=count)))
        each = st.lists(st.floats(0.5, 6), min_size=count, max_size=count)
        losses[text] = {name: DocumentLosses(np.array(draw(each)) * tokens[text], 3 * tokens[text]) for name in names}
    own = {name: draw(st.lists(st.sampled_from(texts), unique=True, max_size=2)) for name in names}
    return losses, tokens, own


def parts(kinds, renamed=lambda name: name):
    return {frozenset(map(renamed, kind)) for kind in kinds}


def said(pairs, renamed=lambda name: name):
    return {frozenset(map(renamed, pair["experts"])): (pair["say"], pair["low"], pair["high"]) for pair in pairs}


@settings(max_examples=50)
@given(measured(), st.floats(0, 0.5))
def test_kinds_divide_the_experts_and_those_who_are_close_are_never_apart(table, least):
    losses, tokens, own = table
    found = kinds_of(losses, tokens, own, least=least)
    assert sorted(itertools.chain.from_iterable(found.kinds)) == sorted(own)
    kind = {name: number for number, members in enumerate(found.kinds) for name in members}
    for pair in found.pairs:
        assert 0 <= pair["low"] <= pair["say"] <= pair["high"] <= 0.5
        assert pair["say"] < least or kind[pair["experts"][0]] == kind[pair["experts"][1]]
    assert all(set(heard) <= set(own) for heard in found.heard.values())
    assert all(heard for heard in found.heard.values()) or least > 0.49


@settings(max_examples=50)
@given(measured(), st.permutations(NAMES), st.permutations(NAMES))
def test_neither_order_nor_names_of_the_experts_decide_anything(table, order, others):
    losses, tokens, own = table
    other = dict(zip(NAMES, others, strict=True))
    place = [name for name in order if name in own]
    changed = kinds_of(
        {text: {other[name]: found[name] for name in place} for text, found in losses.items()},
        tokens,
        {other[name]: own[name] for name in place},
    )
    found = kinds_of(losses, tokens, own)
    assert parts(found.kinds, other.__getitem__) == parts(changed.kinds)
    assert said(found.pairs, other.__getitem__) == said(changed.pairs)
    assert {text: {other[name] for name in heard} for text, heard in found.heard.items()} == {
        text: set(heard) for text, heard in changed.heard.items()
    }
    assert {other[name]: texts for name, texts in found.own.items()} == changed.own


@given(st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))))
def test_parts_hang_together_and_are_not_linked_to_each_other(links):
    reached = np.eye(len(NAMES), dtype=bool)
    for one, other in links:
        reached[NAMES.index(one), NAMES.index(other)] = reached[NAMES.index(other), NAMES.index(one)] = True
    reached = np.linalg.matrix_power(reached.astype(int), len(NAMES)) > 0
    expected = {frozenset(name for name, there in zip(NAMES, row, strict=True) if there) for row in reached}
    assert parts(linked(NAMES, sorted(links))) == expected


# ---------------------------------------------------------------------------------------------- on models


@pytest.fixture(scope="module")
def place(pages, substrate, tokenizer, tmp_path_factory):
    """Two owners of Russian with no page in common and one of English, trained on 8,192 tokens, and all joined."""
    place = tmp_path_factory.mktemp("kinds")
    (place / "substrate").mkdir()
    substrate.save(place / "substrate", tokenizer)
    for name, texts in {"ru-1": pages["ru"][::2], "ru-2": pages["ru"][1::2], "en": pages["en"]}.items():
        lines = "\n".join(json.dumps({"text": text[:400]}) for text in texts)
        (place / f"{name}.jsonl").write_text(lines)
        source = Source(path=str(place / f"{name}.jsonl"), name=name[:2])
        prepare([source], tokenizer, place / f"data-{name}", block_size=64, validation=0.15)
        recipe = {
            "substrate": str(place / "substrate"),
            "data": str(place / f"data-{name}"),
            "output": str(place / name),
            "backbone": {"preset": "tiny", "layers": 1, "context": 64},
            "training": {"tokens": 8192, "batch_tokens": 256, "evaluations": 1, "learning_rate": 1e-2},
        }
        train_expert(ExpertRecipe.model_validate(recipe))
    compose_directories({name: place / name for name in ("ru-1", "en", "ru-2")}, place / "joined")
    return place


MEASURED = "compose kinds joined --data data-ru-1 --data data-ru-2 --data data-en --limit 8"


def test_two_owners_of_one_language_are_found(treering, place):
    status, out, _ = treering(f"{MEASURED} -o kinds.html")
    out = " ".join(out.split())
    assert status == 0, out
    assert "Found, not told: ru-1 and ru-2 are of one kind; en is of a kind of its own" in out
    assert f"Where several experts have a say, {TOGETHER} needs " in out
    assert f"on en one alone has a say, so that nothing is to be gained by {TOGETHER}." in out
    page = (place / "kinds.html").read_text()
    assert f"treering {MEASURED} -o kinds.html" in page and "ru-1 and ru-2 are of one kind" in page


def test_the_command_says_what_the_functions_measure(treering, place, tokenizer):
    status, out, _ = treering(f"{MEASURED} --json")
    found = json.loads(out)
    assert status == 0 and found["kinds"] == [["ru-1", "ru-2"], ["en"]]
    assert found["own"] == {"ru-1": ["ru"], "en": ["en"], "ru-2": ["ru"]}
    model = load_model(place / "joined")
    texts = held_out_texts([place / f"data-{name}" for name in ("ru-1", "ru-2", "en")])
    for text, documents in ((text, documents[:8]) for text, documents in texts.items()):
        losses = composition_losses(model, tokenizer, documents, ["evidence:switch=0.01", TOGETHER])
        bits = {row["model"]: row["bits_per_byte"] for row in found["rows"] if row["text"] == text}
        assert bits == {name: round(losses[name].bits_per_byte, 4) for name in ("ru-1", "en", "ru-2")}
        (gain,) = (gain for gain in found["gains"] if gain["text"] == text)
        expected = paired_change(losses[TOGETHER], losses["evidence:switch=0.01"])
        assert gain["change"] == pytest.approx(expected.change, abs=1e-5) and gain["documents"] == len(documents)
        if text == "ru":
            tokens = np.array([len(ids) for ids in encode(tokenizer, documents)])
            say = np.median(says(losses["ru-1"].nats, losses["ru-2"].nats, tokens))
            (pair,) = (pair for pair in found["pairs"] if pair["experts"] == ["ru-1", "ru-2"])
            assert pair["text"] == "ru" and pair["say"] == pytest.approx(say, abs=1e-4)


def test_what_people_get_wrong_is_told(treering):
    for words, why in (
        ("compose kinds ru-1 --data data-en", "one expert alone"),
        ("compose kinds nowhere --data data-en", "nowhere"),
        ("compose kinds joined", "Nothing to measure on"),
        ("compose kinds joined --data nowhere", "nowhere"),
        ("compose kinds joined --data data-en --own fi=en", "There is no expert 'fi'"),
        ("compose kinds joined --data data-en --own en=fi", "There is no text 'fi'"),
        ("compose kinds joined --data data-en --own en", "does not say whose it is"),
        ("compose kinds joined --data data-en --least 0.7", "less than or equal to 0.5"),
        ("compose kinds joined --data data-en -o kinds.txt", "end in .html"),
    ):
        status, out, err = treering(words)
        assert status == 2 and why in err and "Traceback" not in err and out == "", (words, err)


def test_own_texts_can_be_told(place, tokenizer, pages):
    model = load_model(place / "joined")
    texts = {"a": pages["ru"][:2], "b": pages["en"][:2]}
    untold = find_kinds(model, tokenizer, texts)  # of another name than those in the records
    assert untold.own == {"ru-1": ["a"], "en": ["b"], "ru-2": ["a"]} and untold.kinds == [["ru-1", "ru-2"], ["en"]]
    told = find_kinds(model, tokenizer, texts, {"ru-1": ["b"]})
    assert told.own["ru-1"] == ["b"]
    with pytest.raises(TreeringError, match="no text 'c'"):
        find_kinds(model, tokenizer, texts, {"ru-1": ["c"]})
