from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

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
        } | config
        torch.manual_seed(3)
        if family == "qwen3":
            kinds = ["sliding_attention", "full_attention"]
            shape |= {"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
            return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()

    return make
