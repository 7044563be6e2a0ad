"""Experts on disk, and a composition of two of them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

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


@pytest.fixture(scope="session")
def law():
    """``law(model, prompt, length, end, heard)``: the probability of every continuation, by the model's own logits.

    ``heard`` makes of a text and the logits after it those that are sampled from; ``end`` ends a continuation.
    """

    def probabilities(model, prompt, length, end, heard=lambda text, logits: logits):
        found = {}

        def go_on(text, probability):
            new = tuple(text[len(prompt) :])
            if len(new) == length or (new and new[-1] == end):
                found[new] = probability
                return
            with torch.no_grad():
                after = heard(text, model(torch.tensor([text])).logits[0, -1].double()).softmax(-1)
            for token, own in enumerate(after.tolist()):
                go_on([*text, token], probability * own)

        go_on(list(prompt), 1.0)
        return found

    return probabilities


@pytest.fixture(scope="session")
def pearson():
    """``pearson(counts, expected)``: Pearson's χ² of counts against expected shares, and its 99.99% quantile.

    Cells of which fewer than five are expected are one.
    """

    def statistic(counts, expected):
        samples = sum(counts.values())
        often = [cell for cell, share in expected.items() if share * samples >= 5]
        cells = [(counts.get(cell, 0), expected[cell] * samples) for cell in often]
        rest = samples - sum(count for count, _ in cells), samples - sum(mean for _, mean in cells)
        cells += [rest] if len(often) < len(expected) else []
        freedom = len(cells) - 1
        # Wilson & Hilferty: (χ²/n)^⅓ is nearly normal.
        limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
        return sum((count - mean) ** 2 / mean for count, mean in cells), limit

    return statistic


class Told:
    """A streamer that keeps what it is told."""

    def __init__(self):
        self.prompts, self.tokens, self.ends = [], [], 0

    def put(self, value):
        self.prompts += value.tolist() if value.dim() == 2 else []
        self.tokens += value.tolist() if value.dim() == 1 else []

    def end(self):
        self.ends += 1


@pytest.fixture
def told():
    """``told()``: a new streamer, with its ``prompts``, ``tokens`` and ``ends``."""
    return Told
