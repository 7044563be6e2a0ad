from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoTokenizer
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose, compose_directories, load_model
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


@pytest.fixture
def places(plain, tokenizer, tmp_path):
    """A model, and an adapter that was trained on it, in directories; and the adapted model itself."""
    plain.save_pretrained(tmp_path / "base")
    tokenizers.save(tokenizer, tmp_path / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(plain), LORA).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path, adapted


def merging(place, adapter="adapter", base="base"):
    return CliRunner().invoke(
        app, ["model", "merge", str(place / adapter), "--base", str(place / base), "-o", str(place / "out")]
    )


def test_an_adapter_on_disk_and_its_base_are_an_expert(places, plain, tokenizer):
    place, adapted = places
    assert merging(place).exit_code == 0
    ids = torch.tensor([tokenizer("To open this dialog")["input_ids"]])
    compose_directories({"base": place / "base", "law": place / "out"}, place / "joined", "mean")
    with torch.no_grad():
        law = load_model(place / "out")(ids).logits
        torch.testing.assert_close(law, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        expected = (plain(ids).logits + law) / 2
        torch.testing.assert_close(load_model(place / "joined")(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(place / "out")("Файл")["input_ids"] == tokenizer("Файл")["input_ids"]
    assert isinstance(merging(place).exception, TreeringError)  # it is there


def test_an_adapter_that_does_not_fit_is_refused(places, expert, tokenizer):
    place, _ = places
    expert(3, family="llama").save_pretrained(place / "other")
    tokenizers.save(tokenizer, place / "other")
    assert "damaged, or an adapter of another model" in str(merging(place, base="other").exception)
    assert "no adapter_config.json" in str(merging(place, adapter="base").exception)
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    for fields in ({"target_modules": ["dense"]}, {"r": 10**9}, {"r": 3}, {"r": "x"}, {"peft_type": "NONE"}):
        (place / "adapter" / "adapter_config.json").write_text(json.dumps(config | fields))
        assert "damaged, or an adapter of another model" in str(merging(place).exception), fields
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    weights = place / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "damaged or cut short" in str(merging(place).exception)
    weights.unlink()
    assert "pickles, which can run code" in str(merging(place).exception)
    (place / "elsewhere").write_bytes(whole)
    weights.symlink_to(place / "elsewhere")
    assert "does not follow" in str(merging(place).exception)
    assert not (place / "out").exists()
