from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from treering.growth import grow, seedling
from treering.training import Backbone


@pytest.fixture
def fresh(substrate, tokenizer):
    """``fresh()``: a model of no block on the substrate, each time the same."""

    def make():
        torch.manual_seed(0)
        return seedling(substrate, tokenizer, Backbone(preset="tiny"))

    return make


@pytest.fixture
def growing(tokenizer, corpus):
    """``growing(model, output, plan, training, …)``, silently."""
    return lambda model, output, plan, training, **kw: grow(
        model, tokenizer, corpus, output, plan, training, console=Console(file=io.StringIO()), **kw
    )


WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
FOREIGN = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": WINDOWS | {"head_dim": 16, "use_sliding_window": True},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": False},
    "olmo2": {},
    "stablelm": {},
    "starcoder2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"num_kv_heads": 1},
    "gemma": {"head_dim": 16},
    "gemma2": WINDOWS | {"head_dim": 16, "final_logit_softcapping": 5.0},
    "gemma3_text": WINDOWS | {"head_dim": 16, "final_logit_softcapping": 5.0},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "gpt2": {},
}
"""By family, what its small model says beside its sizes."""


@pytest.fixture
def foreign(tokenizer):
    """``foreign(family, **config)``: a small model that Treering did not make, of two blocks."""

    def make(family="llama", **config):
        shape = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "tie_word_embeddings": family in ("gemma", "gemma2", "gemma3_text", "gpt2", "falcon"),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        torch.manual_seed(3)
        config = AutoConfig.for_model(family, **shape | FOREIGN[family] | config)
        return AutoModelForCausalLM.from_config(config).eval()

    return make
