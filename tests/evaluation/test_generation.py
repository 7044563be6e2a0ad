from __future__ import annotations

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from treering.composition import compose
from treering.composition.speculation import Pace
from treering.errors import TreeringError
from treering.evaluation import document_losses, generate


def test_same_seed_same_text_and_greedy_needs_none(expert, tokenizer):
    model = expert(5)
    sampled = [generate(model, tokenizer, "To open", 20, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    greedy = [generate(model, tokenizer, "To open", 20, temperature=0) for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_empty_text_begins_a_document(expert, tokenizer):
    assert isinstance(generate(expert(5), tokenizer, "", 5, seed=0), str)


def test_beams_do_at_least_as_well_as_greedy_search(expert, tokenizer):
    assert generate(expert(5), tokenizer, "To open", 8, temperature=0, beams=3)


def test_text_longer_than_the_context_is_an_error_with_numbers(expert, tokenizer):
    with pytest.raises(TreeringError, match=r"context is 96. There is no room for more: shorten it"):
        generate(expert(5), tokenizer, "word " * 200, 5)
    with pytest.raises(TreeringError, match="ask for at most 9"):
        generate(expert(5), tokenizer, "To open", 100)


def test_beams_with_sampling_are_refused(expert, tokenizer):
    with pytest.raises(TreeringError, match="does not sample"):
        generate(expert(5), tokenizer, "x", 5, beams=2)


def test_a_drawn_answer_is_one_experts_and_only_plain_sampling(expert, tokenizer):
    joined = compose({"a": expert(1), "b": expert(2)}, "evidence")
    sampled = [generate(joined, tokenizer, "To open", 20, seed=seed, drawn=True) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    for wrong in ({"temperature": 0.8}, {"top_p": 0.9}, {"temperature": 0, "beams": 2}):
        with pytest.raises(TreeringError, match="at temperature 1 from all tokens"):
            generate(joined, tokenizer, "To open", 5, drawn=True, **wrong)
    with pytest.raises(TreeringError, match="single model"):
        generate(expert(1), tokenizer, "To open", 5, drawn=True)


def test_a_composition_writes_the_same_with_and_without_a_leader(expert, tokenizer, monkeypatch):
    joined, led = compose({"a": expert(1), "b": expert(2)}, "evidence:switch=0.01"), []
    learn = Pace.learn
    monkeypatch.setattr(Pace, "learn", lambda pace, *counts: (led.append(counts), learn(pace, *counts)))
    alone = generate(joined, tokenizer, "To open", 20, temperature=0, speculate=False)
    assert not led
    assert generate(joined, tokenizer, "To open", 20, temperature=0) == alone
    assert led
    sampled = [generate(joined, tokenizer, "To open", 20, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert generate(joined, tokenizer, "To open", 20, seed=1, speculate=False) == sampled[0]
    for written_otherwise in ({"beams": 2, "temperature": 0}, {"drawn": True}):
        led.clear()
        generate(joined, tokenizer, "To open", 5, **written_otherwise)
        assert not led
    generate(joined.use("mean"), tokenizer, "To open", 5)
    generate(expert(1), tokenizer, "To open", 5)
    assert not led


def test_a_model_without_a_longest_text_is_written_with_and_measured(tokenizer):
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)).eval()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("some text")["input_ids"]]])
    greedy = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert generate(model, tokenizer, "some text", 3, temperature=0) == tokenizer.decode(greedy)
    (nats,) = document_losses(model, tokenizer, ["some text"]).nats
    assert nats == pytest.approx(model(ids, labels=ids).loss.item() * (ids.shape[1] - 1), rel=1e-5)
