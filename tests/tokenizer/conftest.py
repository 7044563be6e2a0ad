from __future__ import annotations

import json
import lzma

import pytest
from transformers import PreTrainedTokenizerFast

from treering.corpus import embedded
from treering.tokenizer import train


def _pages(language: str, count: int) -> list[str]:
    with lzma.open(embedded(language), "rt", encoding="utf-8") as lines:
        pages = (json.loads(next(lines)) for _ in range(count))
        return ["\n".join(paragraph["text"] for paragraph in page["paragraphs"]) for page in pages]


@pytest.fixture(scope="session")
def corpus() -> dict[str, list[str]]:
    """Three languages of unequal size; the Russian one has emoji and words of another plane."""
    texts = {"ru": _pages("ru", 80), "zh": _pages("zh", 80), "en": _pages("en", 80)}
    texts["ru"].append("Спасибо 😀😀 \U00010330\U0001033f\U00010330 " * 200)
    texts["zh"].append("<s>你好</s>[EOT]<pad>" * 200)
    return texts


@pytest.fixture(scope="session")
def unicode_tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return train(corpus, 65_536)


@pytest.fixture(scope="session")
def compact_tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return train(corpus, 1_500)


@pytest.fixture(scope="session")
def paper_tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return train(corpus, 70_000, merges="longest-first")


@pytest.fixture(scope="session")
def compact_paper_tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return train(corpus, 1_500, merges="longest-first")


TOKENIZERS = ("unicode_tokenizer", "compact_tokenizer", "paper_tokenizer", "compact_paper_tokenizer")


@pytest.fixture(params=TOKENIZERS, scope="session")
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of the four kinds in turn."""
    return request.getfixturevalue(request.param)
