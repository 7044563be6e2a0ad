"""GGUF files: written here as llama.cpp's converter writes them, read back, and spoiled in every way."""

from __future__ import annotations

import copy
import io
import json

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from treering import gguf as files
from treering import tokenizer as tokenizers
from treering.composition import compose_directories, list_experts, load_model
from treering.corpus import Source, prepare
from treering.errors import TreeringError
from treering.growth import branch, grow
from treering.growth.recipe import GrowthRecipe, grow_recipe
from treering.training import Training

IDS = torch.arange(40).view(2, 20) * 7 % 700
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """Rotary halves side by side, as llama.cpp has them."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def write(path, model, tokenizer, architecture="llama"):
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_name("a small one")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = [3 if token in tokenizer.all_special_tokens else 1 for token in tokens]
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for name, tensor in state.items():
        if name.startswith("model.layers."):
            number, _, part = name.removeprefix("model.layers.").partition(".")
            part = part.removesuffix(".weight")
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            whole = interleaved(tensor, heads[part]) if part in heads else tensor
            writer.add_tensor(f"blk.{number}.{NAMES[part]}.weight", np.ascontiguousarray(whole.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def packed(llama, tokenizer, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", llama, tokenizer)


def test_a_model_comes_out_as_it_went_in_and_is_plain(packed, llama, tmp_path):
    model = load_model(packed)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, llama(IDS).logits, rtol=1e-5, atol=1e-5)
    assert model.config.tie_word_embeddings and model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert not hasattr(again.config, "quantization_config")
    assert all(p.equal(again.state_dict()[name]) for name, p in model.state_dict().items())


def test_its_tokenizer_makes_the_same_tokens_and_says_that_it_takes_long(packed, tokenizer, pages, capsys):
    read = tokenizers.load(packed)
    assert "reading the tokenizer of small.gguf (this can take minutes" in capsys.readouterr().err
    for text in pages["ru"][0], pages["zh"][0], pages["en"][0]:
        assert tokenizers.encode(read, [text]) == tokenizers.encode(tokenizer, [text])
    assert tokenizers.separator(read) == tokenizers.separator(tokenizer)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("load", [load_model, tokenizers.load])
def test_a_file_that_is_cut_short(packed, tmp_path, share, load):
    content = packed.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: max(5, int(len(content) * share))])
    with pytest.raises(TreeringError, match=r"cut\.gguf is damaged or cut short: .*\. Copy or download it again"):
        load(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "is no GGUF file"),
        (4, (9).to_bytes(4, "little"), "its version is 9"),
        (8, (2**62).to_bytes(8, "little"), "asks for more than there is"),
        (16, (2**62).to_bytes(8, "little"), "asks for more than there is"),
        (24, (2**40).to_bytes(8, "little"), "asks for more than there is"),
    ],
)
def test_a_damaged_header(packed, tmp_path, at, value, message):
    content = bytearray(packed.read_bytes())
    content[at : at + len(value)] = value
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(TreeringError, match=message):
        load_model(tmp_path / "bad.gguf")


def test_any_changed_byte_of_a_header_is_a_model_or_a_message(packed, tmp_path):
    content, rng = packed.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(0, 900, 25):
        changed = bytearray(content)
        changed[at] = rng.integers(256)
        (tmp_path / "bad.gguf").write_bytes(changed)
        try:
            load_model(tmp_path / "bad.gguf")
        except TreeringError as error:
            assert "bad.gguf" in str(error)


def test_an_architecture_that_transformers_does_not_know(llama, tokenizer, tmp_path):
    write(tmp_path / "odd.gguf", llama, tokenizer, "squid")
    with pytest.raises(TreeringError, match=r"odd\.gguf cannot be read by transformers: .*squid.* Give the model as"):
        load_model(tmp_path / "odd.gguf")


def test_what_is_not_there_and_what_is_not_installed(packed, tmp_path, monkeypatch):
    with pytest.raises(TreeringError, match=r"There is no file .*none\.gguf"):
        load_model(tmp_path / "none.gguf")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    for load in load_model, tokenizers.load:
        with pytest.raises(TreeringError, match=r"pip install 'treering\[gguf\]'"):
            load(packed)


def test_a_branch_grows_on_a_gguf_file(packed, llama, pages, tmp_path):
    (tmp_path / "ru.txt").write_text("\n\n".join(pages["ru"]), encoding="utf-8")
    model, tokenizer = load_model(packed), tokenizers.load(packed)
    corpus = prepare(
        [Source(path=str(tmp_path / "ru.txt"))], tokenizer, tmp_path / "data", block_size=64, validation=0.1
    )
    quiet = Console(file=io.StringIO())
    grow(model, tokenizer, corpus, tmp_path / "out", branch(2), Training(tokens=2048), console=quiet)
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert grown.config.num_hidden_layers == 4 and grown.config.tie_word_embeddings
    assert grown.get_input_embeddings().weight.equal(llama.get_input_embeddings().weight)
    assert tokenizers.identity(tokenizers.load(tmp_path / "out")) == tokenizers.identity(tokenizer)


def test_a_gguf_file_is_the_base_of_a_composition(llama, tokenizer, tmp_path):
    """As the demo's report tells to do by hand: grown on the file, joined with the file."""
    tokenizer, model = copy.deepcopy(tokenizer), copy.deepcopy(llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})  # or transformers adds it
    model.resize_token_embeddings(len(tokenizer))
    packed = write(tmp_path / "small.gguf", model, tokenizer)
    tokenizer = tokenizers.load(packed)
    source = Source(path="embedded:ru", limit=60)
    prepare([source], tokenizer, tmp_path / "data", block_size=32, validation=0.1)
    fields = {"model": str(packed), "data": str(tmp_path / "data"), "output": str(tmp_path / "ru"), "plan": "branch"}
    training = {"tokens": 512, "batch_tokens": 256, "evaluations": 1}
    grow_recipe(GrowthRecipe.model_validate(fields | {"training": training, "abilities": False}), Console(quiet=True))
    compose_directories({"base": packed, "ru": tmp_path / "ru"}, tmp_path / "joined")
    assert [trunk.experts for trunk in load_model(tmp_path / "joined").tree.trunks.values()] == [("base", "ru")]
    assert list_experts(tmp_path / "joined")[0]["origin"] == "small.gguf"
