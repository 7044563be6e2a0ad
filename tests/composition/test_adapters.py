from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from treering.composition import compose
from treering.errors import TreeringError

LORA = LoraConfig(target_modules=["query_key_value"], r=2, init_lora_weights=False)


@pytest.fixture
def plain(expert):
    return expert(1)


def test_an_adapter_is_merged_into_a_copy(expert, plain, tokenizer):
    ids = torch.tensor([tokenizer("To open this dialog")["input_ids"]])
    torch.manual_seed(0)
    adapted = get_peft_model(expert(2), LORA).eval()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    joined = compose({"plain": plain, "adapted": adapted}, "mean")
    with torch.no_grad():
        expected = (plain(ids).logits + adapted(input_ids=ids).logits) / 2
        torch.testing.assert_close(joined(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not expert(2)(ids).logits.allclose(adapted(input_ids=ids).logits, atol=1e-2)
    assert adapted.state_dict().keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in adapted.state_dict().items())


def test_what_cannot_be_merged_is_said(expert, plain):
    prompts = get_peft_model(expert(2), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(TreeringError, match=r"other is a PEFT adapter \(PROMPT_TUNING\) that cannot be merged"):
        compose({"plain": plain, "other": prompts})
    inside = copy.deepcopy(plain)
    inside.add_adapter(LORA)
    with pytest.raises(TreeringError, match="other has PEFT adapters among its own layers"):
        compose({"plain": plain, "other": inside})
    with pytest.raises(TreeringError, match="other is no Hugging Face model but a Linear"):
        compose({"plain": plain, "other": torch.nn.Linear(2, 2)})
