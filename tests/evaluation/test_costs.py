from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from treering.composition import compose
from treering.evaluation.costs import Costs, costs, mebibytes, milliseconds

CONTEXT = 48


def plain(layers=2, width=32, vocabulary=101):
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocabulary, max_position_embeddings=CONTEXT, **shape)).eval()


def weights(model):
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def test_memory_is_the_weights_and_the_keys_and_values_of_a_whole_context():
    model = plain()
    cache = 2 * 2 * CONTEXT * 32 * 4  # keys and values of two blocks, width 32, in float32
    inverse_frequencies = sum(buffer.nbytes for buffer in model.buffers())
    assert mebibytes(model, CONTEXT) == (weights(model) + inverse_frequencies + cache) / 2**20
    assert mebibytes(model, CONTEXT) - mebibytes(model, CONTEXT // 2) == cache / 2 / 2**20
    assert mebibytes(model.half(), CONTEXT) == pytest.approx((weights(model) + cache / 2) / 2**20, rel=1e-3)


def test_a_tied_head_is_there_once():
    model = plain()
    before = mebibytes(model, 1)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    assert before - mebibytes(model, 1) == 101 * 32 * 4 / 2**20


def test_a_composition_has_its_experts_weights_its_caches_and_what_evidence_remembers(expert):
    experts = [expert(1), expert(2, 1)]
    joined = compose(dict(zip("ab", experts, strict=True)), "mean")
    substrate = joined.get_input_embeddings().weight.nbytes / 2**20
    apart = [mebibytes(own, CONTEXT) for own in experts]
    assert mebibytes(joined, CONTEXT) == pytest.approx(sum(apart) - substrate, rel=1e-3)
    more = mebibytes(joined.use("evidence:switch=0.01"), CONTEXT) - mebibytes(joined.use("mean"), CONTEXT)
    one_said = joined.config.vocab_size * 4  # each expert's last logits, to weigh what comes
    numbers = CONTEXT * 8 * (1 + 2 + 9)  # of each token its ID, two likelihoods and at most nine rows of evidence
    assert more == pytest.approx((2 * one_said + numbers) / 2**20, rel=1e-3)


def test_costs_are_of_the_model_as_it_is_used(expert):
    model = expert(1)
    found = costs(model, CONTEXT)
    assert found == Costs(sum(p.numel() for p in model.parameters()), found.milliseconds, mebibytes(model, CONTEXT))
    assert 0 < found.milliseconds < 10_000
    assert milliseconds(model, steps=1) > 0
    assert not torch.is_inference_mode_enabled()
