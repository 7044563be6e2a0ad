"""One model under many names: other rules, fewer experts."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from treering.composition import compose, load_model, variant
from treering.evaluation import generate
from treering.serving import turns
from treering.serving.catalogue import Catalogue
from treering.serving.served import Served

PROMPT = "To open this dialog, choose"
LISTED = ["mean", "weighted", "probability", "evidence", "top_k"]


@pytest.fixture(scope="module")
def three(expert):
    """Three experts that disagree."""
    return {"ru": expert(1), "zh": expert(2, family="llama"), "en": expert(3)}


def test_rules_that_are_ready_and_experts_that_may_be_left_out_are_listed(client):
    names = ["joined", *(f"joined:{rule}" for rule in LISTED), "joined-without-a", "joined-without-b"]
    assert [model.id for model in client.models.list()] == names
    for name in [*names, "joined:evidence:switch=0.02", "joined-without-a:top_k:k=1"]:
        assert client.models.retrieve(name).id == name


def test_a_single_model_has_one_name(expert, tokenizer, serving):
    with serving(Served("base", expert(1), tokenizer)) as client:
        assert [model.id for model in client.models.list()] == ["base"]
        for name in ("base:mean", "base-without-a"):
            with pytest.raises(openai.NotFoundError, match="single model"):
                client.completions.create(model=name, prompt=PROMPT)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other", "this server has 'joined'"),
        ("joine", "this server has 'joined'"),
        ("joinedx", "joined:RULE"),
        ("joined:", "joined:RULE"),
        ("joined-without-", "no expert ''"),
        ("joined-without-c", "There are: a, b"),
        ("joined-without-a-without-b", "at least one"),
        ("joined:mean-without-a", "no composition rule 'mean-without-a'"),
        ("joined:best", "There are: mean, weighted"),
        ("joined:evidence:switch=2", "switch"),
        ("joined:oracle", "yardstick"),
        ("joined:gate", "has to be fitted"),
    ],
)
def test_names_of_nothing(client, name, told):
    for ask in (
        lambda: client.completions.create(model=name, prompt=PROMPT),
        lambda: client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}]),
        lambda: client.models.retrieve(name),
    ):
        with pytest.raises(openai.NotFoundError, match=told) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_what_was_fitted_is_ready_for_all_experts_together(three):
    model = compose(three).use("gate")
    model.config.fusion = {"gate": {"tokens": 1000}}
    catalogue = Catalogue("j", model.use("evidence"))
    assert "j:gate" in catalogue.names and "j:adapter" not in catalogue.names
    assert catalogue.find("j:gate").fusion["gate"] is model.fusion["gate"]
    assert Catalogue("j", model.use("gate")).names == ["j", *(f"j:{rule}" for rule in [*LISTED, "gate"])]
    assert model.config.fusion == {"gate": {"tokens": 1000}}


def test_no_weight_is_copied(three):
    model = compose(three)
    catalogue, numbers = Catalogue("j", model), {p.data_ptr() for p in model.parameters()}
    for name in ("j:mean", "j-without-ru", "j-without-zh-without-en:top_k"):
        other = catalogue.find(name)
        assert {p.data_ptr() for p in other.parameters()} <= numbers
        assert catalogue.find(name) is other
    assert catalogue.find("j") is model


def test_every_name_has_its_own_answers_among_others(three, tokenizer, serving, monkeypatch):
    """Whatever else is being written: turns are passed on after each token."""
    names = ["j", "j:mean", "j:evidence:switch=0.3,cache=0.2", "j:top_k:k=1", "j-without-ru"]
    names += ["j-without-zh-without-ru", "j:mean", "j-without-en:probability", "j:weighted", "j-without-ru:evidence"]
    expected = {}
    for name in names:
        left, _, spec = name.removeprefix("j").partition(":")
        experts = {e: own for e, own in three.items() if e not in left.split("-without-")}
        model = compose(experts, spec or "evidence:switch=0.01")
        expected[name] = [generate(model, tokenizer, f"{PROMPT} {i}", 12, temperature=0) for i in range(4)]
    assert len({text for texts in expected.values() for text in texts}) > 20
    asked = [(name, i) for name in expected for i in range(4)]
    random.Random(0).shuffle(asked)
    monkeypatch.setattr(turns, "SLICE", 0)
    with serving(Served("j", compose(three), tokenizer)) as client, ThreadPoolExecutor(8) as pool:

        def ask(name: str, i: int) -> str:
            logprobs, echo = (None, 1)[i % 2], i == 3
            told = client.completions.create(
                model=name, prompt=f"{PROMPT} {i}", max_tokens=12, temperature=0, logprobs=logprobs, echo=echo
            )
            assert told.model == name
            return told.choices[0].text.removeprefix(f"{PROMPT} {i}" if echo else "")

        found = list(pool.map(lambda one: ask(*one), asked))
    assert found == [expected[name][i] for name, i in asked]


def test_a_context_is_that_of_the_experts_that_are_there(expert, tokenizer, serving):
    short = expert(2, family="llama")
    short.config.max_position_embeddings = 40
    model = compose({"long": expert(1), "short": short})
    with serving(Served("j", model, tokenizer)) as client:
        asked = {"prompt": [9] * 60, "max_tokens": 1}
        client.completions.create(model="j-without-short", **asked)
        for name in ("j", "j-without-long"):
            with pytest.raises(openai.BadRequestError, match="context is 40"):
                client.completions.create(model=name, **asked)


def test_a_server_s_own_rule_is_that_of_its_plain_name(directory, tokenizer, serving):
    model = load_model(directory, rule="mean")
    with serving(Served("joined", model, tokenizer)) as client:
        for name, same in (("joined", model), ("joined-without-b", variant(model, without=["b"]))):
            told = client.completions.create(model=name, prompt=[7, 8, 9], max_tokens=0, echo=True, logprobs=0)
            said = same(torch.tensor([[7, 8, 9]])).logits[0].log_softmax(-1)
            expected = [said[0, 8].item(), said[1, 9].item()]
            assert told.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, rel=1e-4)
