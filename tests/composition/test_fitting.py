from __future__ import annotations

import copy

import pytest
import torch

from treering.composition import compose, fit
from treering.composition.fitting import _allowance
from treering.errors import TreeringError
from treering.evaluation import composition_losses


@pytest.fixture(scope="module")
def experts(expert):
    return {"a": expert(1, 1), "b": expert(2, 2), "c": expert(3, 1, "llama")}


@pytest.fixture(scope="module")
def texts(pages):
    return {"ru": pages["ru"][:5], "zh": pages["zh"][:5]}


def nats_per_token(model, tokenizer, texts, spec):
    """The loss of a rule on whole texts, by the code that evaluates: windows, not examples."""
    documents = [text for found in texts.values() for text in found]
    tokens = sum(len(ids) for ids in tokenizer(documents)["input_ids"])
    return composition_losses(model, tokenizer, documents, [spec])[spec].nats.sum() / tokens


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_fitted_weights_are_the_optimum_of_a_grid(experts, tokenizer, texts, pool):
    model, spec = compose({name: experts[name] for name in ("a", "b")}), f"weighted:pool={pool}"
    done = fit(model, tokenizer, texts, spec)
    found = model.prior.exp()[0].item()
    assert done.after == pytest.approx(nats_per_token(model, tokenizer, texts, spec), rel=1e-4)
    losses = {}
    for share in [found, *torch.linspace(0.02, 0.98, 25).tolist()]:
        for record, weight in zip(model.config.experts, (share, 1 - share), strict=True):
            record["weight"] = weight
        losses[share] = nats_per_token(model, tokenizer, texts, spec)
    assert losses[found] <= min(losses.values()) + 1e-4


@pytest.mark.parametrize("spec", ["gate", "gate:switch=0.1", "gate:pool=log,switch=0.1", "adapter"])
def test_a_fit_starts_at_its_rule_and_gains_what_evaluation_finds(experts, tokenizer, texts, spec):
    model = compose(experts)
    assert max(len(tokenizer(page)["input_ids"]) for found in texts.values() for page in found) > 3 * 96  # windows
    start = spec.replace("gate", "evidence").replace("pool=log,", "").replace("adapter", "mean")
    expected = nats_per_token(model, tokenizer, texts, start)
    done = fit(model, tokenizer, texts, spec)
    assert done.tokens == sum(done.texts.values())
    if "log" not in spec:
        assert done.before == pytest.approx(expected, rel=1e-4)
    assert done.after < done.before
    assert done.after == pytest.approx(nats_per_token(model, tokenizer, texts, spec), rel=1e-4)


@pytest.mark.parametrize("spec", ["weighted", "weighted:pool=log", "gate:switch=0.1", "gate:pool=log", "adapter"])
def test_a_fit_begins_anew(experts, tokenizer, texts, spec):
    """Again, or after other weights were given, it ends where the first one did: bit for bit."""
    model = compose(experts)

    def fitted(weights=None):
        for record, weight in zip(model.config.experts, weights or [], strict=bool(weights)):
            record["weight"] = weight
        done = fit(model, tokenizer, texts, spec, 400)
        return done, [record["weight"] for record in model.config.experts], copy.deepcopy(model.fusion.state_dict())

    first, weights, learned = fitted()
    assert first.after < first.before
    for given in (None, [0.9, 0.05, 0.05] if spec.startswith("weighted") else None):
        again, others, tensors = fitted(given)
        assert again == first and others == weights
        assert tensors.keys() == learned.keys() and all(tensors[name].equal(learned[name]) for name in learned)


def test_a_fit_changes_no_expert(experts, tokenizer, texts):
    before = copy.deepcopy({name: expert.state_dict() for name, expert in experts.items()})
    model = compose(experts)
    for spec in ("weighted", "gate", "adapter"):
        fit(model, tokenizer, texts, spec, 400)
    for name, expert in experts.items():
        assert all(tensor.equal(before[name][key]) for key, tensor in expert.state_dict().items())


def test_a_budget_is_kept_and_texts_are_taken_in_turn(experts, tokenizer, texts):
    done = fit(compose(experts), tokenizer, texts, "weighted", 700)
    assert done.tokens == 700
    assert all(count > 0 for count in done.texts.values())


def test_the_default_budget_is_a_hundredth_of_the_experts_tokens(experts, tokenizer, texts):
    records = {name: {"training": {"measured": {"tokens": 10_000}}} for name in experts}
    model = compose(experts, records=records)
    assert _allowance(model) == 300
    assert fit(model, tokenizer, texts, "weighted").tokens == 300
    assert _allowance(compose(experts, records={"a": records["a"]})) is None


def test_a_rule_without_anything_to_learn_is_refused(experts, tokenizer, texts):
    with pytest.raises(TreeringError, match="nothing to fit"):
        fit(compose(experts), tokenizer, texts, "evidence")


def test_a_weight_however_small_stays_one(experts, tokenizer, texts):
    """A hopeless expert keeps what little it is worth: at 0 it would be out of every evidence, for ever."""
    hopeless = copy.deepcopy(experts["a"])
    with torch.no_grad():
        hopeless.gpt_neox.final_layer_norm.bias += 1
        hopeless.lm_head.weight[0] = 1  # it writes padding, whatever it reads
    model = compose({"a": experts["a"], "b": hopeless})
    fit(model, tokenizer, texts, "weighted")
    first, second = (record["weight"] for record in model.config.experts)
    assert 0 < second < 1e-5
    assert second != round(second, 6)
    assert first + second == pytest.approx(1, abs=1e-12)
    assert model.prior.exp().tolist() == pytest.approx([first, second], rel=1e-12)
