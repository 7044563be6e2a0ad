"""Experts on disk, and a composition of two of them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from treering import tokenizer as tokenizers
from treering.composition import compose_directories
from treering.composition.repeats import ORDER


@pytest.fixture(scope="session")
def saved(expert, tokenizer, tmp_path_factory):
    """Three experts' directories, by name."""
    places = {}
    for seed, (name, layers, family) in enumerate([("ru", 2, "gpt_neox"), ("zh", 1, "gpt_neox"), ("en", 1, "llama")]):
        place = tmp_path_factory.mktemp("experts") / name
        expert(seed, layers, family).save_pretrained(place)
        tokenizers.save(tokenizer, place)
        data = {"sources": [{"name": name}]}
        record = {"origin": {"data": data, "sources": [name]}, "measured": {"tokens": 100_000}}
        (place / "training.json").write_text(json.dumps(record))
        places[name] = place
    return places


@pytest.fixture
def pair(saved, tmp_path):
    compose_directories({name: saved[name] for name in ("ru", "zh")}, tmp_path / "pair")
    return tmp_path / "pair"


@pytest.fixture(scope="session")
def counted():
    """``counted(text, vocabulary)``: what repetition says of the next token, by the recursion, over dictionaries."""

    def distribution(text, vocabulary):
        said = [1 / vocabulary] * vocabulary
        for order in range(min(ORDER, len(text)) + 1):
            context = text[len(text) - order :]
            counts = Counter(text[end] for end in range(max(order, 1), len(text)) if text[end - order : end] == context)
            said = [(counts[token] + below) / (counts.total() + 1) for token, below in enumerate(said)]
        return said

    return distribution
