"""What many rooms' tests stand on: a small tokenizer, a substrate, and experts docked on it."""

from __future__ import annotations

import gc
import itertools
import json
import lzma
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import hypothesis
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import Preset, dock, gpt_neox
from treering.cli import main
from treering.composition import compose_directories
from treering.corpus import Source, embedded, prepare, read_documents
from treering.training import Training

# Every run collects garbage at its end; what all tests share (torch, transformers) it need not look through each time.
gc.freeze()

# A test fails for what it finds, never for how long a busy machine took.
hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def pages() -> dict[str, list[str]]:
    """The first help pages of each language."""
    return {
        language: [d.text for d in itertools.islice(read_documents(f"embedded:{language}"), 120)]
        for language in ("ru", "zh", "en")
    }


@pytest.fixture(scope="session")
def tokenizer(pages: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 700 tokens over the pages, with the specials a language model needs."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(itertools.chain.from_iterable(pages.values()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def substrate(tokenizer: PreTrainedTokenizerFast) -> substrates.Substrate:
    """A frozen random substrate of width 64: made in no time."""
    return substrates.build(tokenizer, 64, kind="random")


@pytest.fixture(scope="session")
def expert(tokenizer: PreTrainedTokenizerFast, substrate: substrates.Substrate) -> Callable[..., PreTrainedModel]:
    """``expert(seed, layers, family)``: an untrained expert docked on the substrate."""

    def make(seed: int, layers: int = 2, family: str = "gpt_neox") -> PreTrainedModel:
        torch.manual_seed(seed)
        config = gpt_neox(Preset(layers, 64, 2, len(tokenizer), context=96))
        if family == "llama":
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=layers,
                num_attention_heads=2,
                max_position_embeddings=96,
            )
        config.initializer_range = 0.3  # far from uniform, so that experts disagree
        return dock(config, substrate, tokenizer).eval()

    return make


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
def settings():
    """Eight steps of 256 tokens, a checkpoint every three."""
    return Training(tokens=2048, batch_tokens=256, micro_batch_tokens=128, evaluations=2, checkpoint_steps=3)


@pytest.fixture(scope="module")
def joined(
    tokenizer: PreTrainedTokenizerFast, expert: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A composition of two experts, with their directories a and b beside it."""
    place = tmp_path_factory.mktemp("joined")
    for seed, name in enumerate("ab"):
        expert(seed, 1).save_pretrained(place / name)
        tokenizers.save(tokenizer, place / name)
    compose_directories({name: place / name for name in "ab"}, place / "joined")
    return place / "joined"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where commands are typed: an empty directory, unless a module has another."""
    return tmp_path


@pytest.fixture
def treering(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``treering("data info x")``: exit status, standard output and standard error, in `place`."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(place)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["treering", *(words[0].split() if len(words) == 1 else words)])
        with monkeypatch.context() as shell, pytest.raises(SystemExit) as stopped:
            shell.setattr("os.environ", os.environ.copy())
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium without a screen; tests of pages are skipped where a machine has none (Debian: apt install chromium)."""
    where = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if where is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as play:
        # Containers, where tests run as root, have no sandbox.
        browser = play.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """``visit(address, width, scheme)``: the page in a window of its own; an error in its scripts fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_page(address: str, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 600, locale="en"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def faults() -> Callable[[Page], list[str]]:
    """``faults(page)``: what hinders people: axe-core's serious findings, and what is wider than the window."""

    def look(page: Page) -> list[str]:
        found = Axe().run(page).response["violations"]
        serious = [
            f"{one['id']}: {one['help']}: {node['target']}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return serious + ([f"{wide} pixels wider than the window"] if wide > 0 else [])

    return look
