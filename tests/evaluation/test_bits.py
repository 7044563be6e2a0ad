from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from treering.composition import ComposedModel, compose
from treering.errors import TreeringError
from treering.evaluation import bits, document_losses, uniform_losses
from treering.evaluation.bits import DocumentLosses, paired_change, resampled_ratios


def brute_force(model, tokenizer, text, context):
    """Nats token by token, each with the context that the documented windows give it."""
    tokens = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    nats = []
    scored = 1
    while scored < len(tokens):
        start = 0 if scored == 1 else scored - context // 2
        end = min(len(tokens), start + context + 1)
        for position in range(scored, end):
            with torch.no_grad():
                logits = model(torch.tensor([tokens[start:position]])).logits[0, -1]
            nats.append(-logits.log_softmax(-1)[tokens[position]].item())
        scored = end
    return nats


def test_losses_are_those_of_a_loop_over_tokens(expert, tokenizer, monkeypatch):
    model = expert(4)
    texts = ["To open this dialog", "Д", "一" * 40 + "\r\n" + "x" * 70, "short"]
    monkeypatch.setattr(bits, "LOGITS_AT_ONCE", 700 * 150)  # several batches
    losses = document_losses(model, tokenizer, texts)
    expected = [sum(brute_force(model, tokenizer, text, context=96)) for text in texts]
    np.testing.assert_allclose(losses.nats, expected, rtol=1e-5)
    assert losses.bytes.tolist() == [len(text.encode()) for text in texts]


@pytest.mark.parametrize("switch", [0.0, 0.1])
def test_a_compositions_evidence_is_that_of_the_whole_document(expert, tokenizer, pages, switch):
    """A loop over tokens, by plain forwards of the experts: their windows end, what is known of them does not."""
    experts = {"a": expert(1), "b": expert(2, 1)}
    texts = [pages["ru"][0][:300] + pages["en"][0][:300], "short", pages["zh"][1][:260]]
    found = document_losses(compose(experts, f"evidence:switch={switch}"), tokenizer, texts)
    alone = [document_losses(each, tokenizer, texts) for each in experts.values()]
    for row, text in enumerate(texts):
        said = np.array([brute_force(each, tokenizer, text, context=96) for each in experts.values()])
        weights, nats = np.full(2, 0.5), 0.0
        for token in np.exp(-said).T:
            nats -= math.log(weights @ token)
            weights = weights * token / (weights @ token)
            weights = (1 - switch) * weights + switch / 2
        assert found.nats[row] == pytest.approx(nats, rel=1e-5)
        assert all(each.nats[row] == pytest.approx(own.sum(), rel=1e-5) for each, own in zip(alone, said, strict=True))
        if switch == 0:  # the promise, whatever the document's length
            assert found.nats[row] <= min(each.nats[row] for each in alone) + math.log(2) + 1e-4


@pytest.mark.parametrize("joined", [False, True])
def test_padding_and_batching_change_nothing(expert, tokenizer, pages, monkeypatch, joined):
    model = compose({"a": expert(4), "b": expert(5)}, "evidence:switch=0.1,together=0.1") if joined else expert(4)
    texts = [page[: 200 * n] for n, page in enumerate(pages["zh"][:6], 1)]
    together = document_losses(model, tokenizer, texts)
    monkeypatch.setattr(bits, "LOGITS_AT_ONCE", 1)
    alone = document_losses(model, tokenizer, texts)
    np.testing.assert_allclose(together.nats, alone.nats, rtol=1e-5)


def test_the_models_mode_is_left_as_it_was(expert, tokenizer):
    model = expert(4).train()
    document_losses(model, tokenizer, ["x"])
    assert model.training


def test_uniform_is_log2_of_the_vocabulary_per_token(tokenizer):
    text = "To open this dialog"
    score = uniform_losses(tokenizer, [text] * 3).score()
    tokens = len(tokenizer(text)["input_ids"])
    expected = tokens * math.log2(len(tokenizer)) / len(text.encode())
    assert (score.bits_per_byte, score.low, score.high) == pytest.approx((expected,) * 3)
    assert score.documents == 3


def test_score_weighs_documents_by_their_bytes():
    losses = DocumentLosses(np.array([80.0, 10.0]) * math.log(2), np.array([10, 90]))
    assert losses.score().bits_per_byte == pytest.approx(0.9)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sizes = rng.integers(50, 500, 60)
        nats = sizes * rng.normal(1.0, 0.2, 60)  # true ratio: 1 nat per byte
        score = DocumentLosses(nats, sizes).score(seed)
        covered += score.low <= 1 / math.log(2) <= score.high
    assert 0.88 <= covered / 200 <= 0.99


def test_resamples_of_one_seed_are_paired():
    sizes = np.arange(1, 40)
    nats = np.random.default_rng(0).random(39)
    worse = resampled_ratios(nats + 0.1 * sizes, sizes, seed=3) - resampled_ratios(nats, sizes, seed=3)
    np.testing.assert_allclose(worse, 0.1)


def test_a_small_difference_shows_when_paired_though_the_intervals_overlap():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 60)
    nats = sizes * rng.normal(1.0, 0.3, 60)
    reference, better = DocumentLosses(nats, sizes), DocumentLosses(nats * rng.normal(0.98, 0.01, 60), sizes)
    change = paired_change(better, reference)
    assert better.score().high > reference.score().low
    assert change.significant
    assert change.low < change.change < change.high < 0
    assert change.change == pytest.approx(-0.02, abs=0.005)
    assert not paired_change(reference, reference).significant


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error(expert, tokenizer, texts):
    with pytest.raises(TreeringError, match="no text"):
        document_losses(expert(4), tokenizer, texts)


def test_a_tokenizer_without_a_separator_is_said_so(expert, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(TreeringError, match="no end-of-text token"):
        document_losses(expert(4), bare, ["x"])


def test_resamples_drawn_in_pieces_are_those_drawn_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    nats, sizes = rng.random(50), rng.integers(1, 100, 50)
    counts = np.random.default_rng(3).multinomial(50, np.full(50, 1 / 50), size=2000)
    at_once = resampled_ratios(nats, sizes, seed=3)
    np.testing.assert_allclose(at_once, (counts @ nats) / (counts @ sizes), rtol=1e-14)
    held = []
    draw = np.random.Generator.multinomial

    class Watched:
        def __init__(self, seed):
            self.own = np.random.Generator(np.random.PCG64(seed))

        def multinomial(self, *args, **options):
            held.append(draw(self.own, *args, **options))
            return held[-1]

    monkeypatch.setattr(bits.np.random, "default_rng", Watched)
    monkeypatch.setattr(bits, "DRAWN_AT_ONCE", 50 * 300)
    np.testing.assert_array_equal(resampled_ratios(nats, sizes, seed=3), at_once)
    assert max(counts.size for counts in held) <= 50 * 300


def test_a_composition_reads_as_many_logits_at_once_as_one_model(expert, tokenizer, pages, monkeypatch):
    joined = compose({"a": expert(1), "b": expert(2), "c": expert(3)})
    texts, budget, seen = pages["zh"][:4], 700 * 97 * 6, []
    expected = document_losses(joined, tokenizer, texts)
    monkeypatch.setattr(bits, "LOGITS_AT_ONCE", budget)
    read = ComposedModel.read

    def watched(self, input_ids, **options):
        seen.append(3 * input_ids.numel() * 700)
        return read(self, input_ids, **options)

    monkeypatch.setattr(ComposedModel, "read", watched)
    losses = document_losses(joined, tokenizer, texts)
    assert max(seen) <= budget
    np.testing.assert_allclose(losses.nats, expected.nats, rtol=1e-5)
