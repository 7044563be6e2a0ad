"""Experts on disk, and a composition of two of them."""

from __future__ import annotations

import json

import pytest

from treering import tokenizer as tokenizers
from treering.composition import compose_directories


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
