from __future__ import annotations

import io
import json
import lzma

import pytest
import torch
from rich.console import Console

from treering.backbone import PRESETS, dock, gpt_neox
from treering.corpus import Source, embedded, prepare
from treering.training import Training, train


@pytest.fixture(scope="session")
def corpus(tokenizer, tmp_path_factory):
    """120 Russian pages packed in blocks of 64."""
    folder = tmp_path_factory.mktemp("corpus")
    with lzma.open(embedded("ru"), "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(120)]
    (folder / "ru.jsonl").write_text("".join(lines), encoding="utf-8")
    assert json.loads(lines[0])["id"]
    return prepare([Source(path=str(folder / "ru.jsonl"))], tokenizer, folder / "packed", block_size=64, validation=0.1)


@pytest.fixture
def model(substrate, tokenizer):
    torch.manual_seed(0)
    config = gpt_neox(PRESETS["tiny"])
    config.vocab_size = len(tokenizer)
    return dock(config, substrate, tokenizer)


@pytest.fixture
def settings():
    """Eight steps of 256 tokens, a checkpoint every three."""
    return Training(tokens=2048, batch_tokens=256, micro_batch_tokens=128, evaluations=2, checkpoint_steps=3)


@pytest.fixture
def run(tokenizer, corpus):
    """``run(model, output, settings)``, silently."""
    return lambda model, output, settings, **kw: train(
        model, tokenizer, corpus, output, settings, console=Console(file=io.StringIO()), **kw
    )
