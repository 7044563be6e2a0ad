"""The tokenizer beside a trained model says what the model saw, so that other tools begin texts as training did."""

from __future__ import annotations

from transformers import AutoConfig, AutoTokenizer

from treering.training import train


def test_a_text_begins_with_what_training_showed(corpus, tokenizer, expert, settings, tmp_path):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    train(expert(0), tokenizer, corpus, tmp_path / "out", settings)
    beside, config = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoConfig.from_pretrained(tmp_path / "out")
    assert beside.bos_token_id == beside.eos_token_id == config.bos_token_id == config.eos_token_id
    assert beside.model_max_length == config.max_position_embeddings == 96
    assert beside("some text").input_ids == tokenizer("some text").input_ids
    assert tokenizer.bos_token == "<s>"
