"""Every code block of the README and of docs/: commands are parsed, Python and tutorials run, recipes are checked."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command

from treering import tokenizer as tokenizers
from treering.backbone import Preset, dock, gpt_neox
from treering.cli import main
from treering.cli.main import app
from treering.composition import compose_directories, load_model, rule
from treering.corpus.preparation import CorpusRecipe
from treering.errors import TreeringError
from treering.evaluation.overlap import OverlapRecipe
from treering.evaluation.table import Row
from treering.growth import GrowthRecipe
from treering.growth.continual import ContinualRecipe
from treering.growth.study import StudyRecipe
from treering.importing import Names
from treering.recipe import check_recipe, load_recipe
from treering.reproduction import ReproductionRecipe
from treering.serving import server
from treering.serving.served import Served
from treering.training import ExpertRecipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TUTORIALS = ("docs/tutorials/languages.md", "docs/tutorials/branch.md")
SITE = "{"
"""Begins the language of what the site's generator reads, such as its tables of contents."""

USAGE = typer.BadParameter.__base__
"""Of all errors in how a command is called."""

RECIPES = {
    "train": ExpertRecipe,
    "grow": GrowthRecipe,
    "study growth": StudyRecipe,
    "study continual": ContinualRecipe,
    "study composition": OverlapRecipe,
    "study reproduction": ReproductionRecipe,
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    excuse: str | None
    """Why it is not run, from a comment before it: ``<!-- not run: … -->``."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file."""
    excuse = None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = re.match(r"<!-- not run: (.+) -->$", token.content.strip())
            excuse = found and found[1]
        elif token.type in ("fence", "code_block"):
            assert token.map
            yield Block(str(page.relative_to(ROOT)), token.map[0] + 1, token.info, token.content, excuse)
            excuse = None
        elif not token.nesting:
            excuse = None


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words: without comments, prompts, variables and what their output goes to.

    Where a line has a prompt, those without one are what commands print.
    """
    lines = text.replace("\\\n", " ").splitlines()
    for line in [line[2:] for line in lines if line.startswith("$ ")] or lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|>;&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "|"]:
            if set(word) <= set("|;&"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


def test_every_block_says_what_it_is():
    assert len(BLOCKS) > 50
    known = {"sh", "console", "python", "yaml", "json", "text"}
    assert [str(b) for b in BLOCKS if b.language not in known and not b.language.startswith(SITE)] == []


def test_what_is_shown_as_output_is_not_run_under_another_name():
    assert [str(b) for b in of("text") if b.text.lstrip().startswith(("treering ", "$ "))] == []


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """What the command line makes of its arguments, and the command's name, without running it."""
    command: Any = get_command(app)
    context = command.make_context("treering", list(words))
    names = []
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return " ".join(names), context.params


def check_treering(words: list[str]) -> None:
    name, given = parse(words)
    rules = given.get("rule") or ()
    for spec in (rules,) if isinstance(rules, str) else rules:
        rule(spec)
    recipe = Path(str(given.get("recipe")))
    if recipe.parts[:1] == ("recipes",):
        assert (ROOT / recipe).is_file()
        others = {"substrate": "s", "data": "d", "output": "o"}
        others = {field: value for field, value in others.items() if field in RECIPES[name].model_fields}
        load_recipe(ROOT / recipe, RECIPES[name], others, given.get("set_") or ())


def check_command(words: list[str]) -> None:
    """Whether one command of a shell block could be run: it is parsed, or what it names is there."""
    first, rest = words[0], words[1:]
    if first == "treering":
        check_treering(rest)
    elif first == "torchrun" and "treering" in rest:
        check_treering(rest[rest.index("treering") + 1 :])
    elif first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif first == "python":
        assert (ROOT / rest[0]).is_file()
    elif words[:2] == ["pip", "install"]:
        extras = metadata("treering").get_all("Provides-Extra", [])
        assert set(re.findall(r"(?:\btreering|^\.| \.)\[([\w-]+)\]", " ".join(rest))) <= set(extras)
    else:
        raise AssertionError(f"no test knows the command {first}")


@pytest.mark.parametrize("block", of("sh", "console"), ids=str)
def test_commands(block):
    found = [words for words in commands(block.text) if words[0] != ">"]
    assert found
    for words in found:
        words = words[: words.index(">")] if ">" in words else words
        if block.excuse is None or words[0] == "treering":
            check_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "treering compose a b",
        "treering compose a b -o c --rule evidenze",
        "treering generate",
        "treering generate a b --tokans 3",
        "treering grou branch",
        "treering data prepare x --mix spoil -o y",
        "treering train recipes/expert.yaml --set training.tokenz=3",
        "make coffee",
        "pip install 'treering[coffee]'",
        "python benchmarks/coffee.py",
        "coffee",
    ],
)
def test_what_would_not_run_is_found(line, capsys):
    (words,) = commands(line)
    with pytest.raises((AssertionError, TreeringError, USAGE)):
        check_command(words)


SCHEMAS = {"docs/corpus.md": CorpusRecipe, "docs/import.md": Names}


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_recipes(block):
    check_recipe(yaml.safe_load(block.text), SCHEMAS[block.page], str(block))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_results(block):
    assert json.loads(block.text).keys() == Row.__annotations__.keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer, substrate) -> Path:
    """A directory that has what the pages' Python reads: two experts, their composition, tokenizer and substrate."""
    place = tmp_path_factory.mktemp("docs")
    for runs in (place / "runs", place / "runs" / "demo"):
        for name in ("ru", "zh"):
            dock(gpt_neox(Preset(1, 64, 2, len(tokenizer))), substrate, tokenizer).save_pretrained(runs / name)
            tokenizers.save(tokenizer, runs / name)
        compose_directories({name: runs / name for name in ("ru", "zh")}, runs / "composed")
    for name in ("tokenizer", "my-tokenizer"):
        tokenizers.save(tokenizer, place / name)
    (place / "my-substrate").mkdir()
    substrate.save(place / "my-substrate", tokenizer)
    return place


@pytest.fixture(scope="module")
def given(place, pages) -> dict[str, dict[str, Any]]:
    """By page, what its Python takes for granted."""
    return {
        "docs/composition.md": {
            "AutoModelForCausalLM": AutoModelForCausalLM,
            "AutoTokenizer": AutoTokenizer,
            "DIR": "runs/demo/composed",
        },
        "docs/tokenizer.md": {
            "russian_texts": pages["ru"],
            "chinese_texts": pages["zh"],
            "english_texts": pages["en"],
        },
        "docs/serving.md": {"messages": [{"role": "user", "content": "Hello"}]},
    }


@contextmanager
def served(directory: Path) -> Iterator[int]:
    """The port of a server of a composition, whose tokenizer has a chat template."""
    tokenizer = tokenizers.load(directory)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    with Served("joined", load_model(directory), tokenizer) as model, server.listen("127.0.0.1", 0) as listener:
        running = server.http_server(model, None)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


@pytest.mark.parametrize("page", sorted({b.page for b in of("python") if b.page not in TUTORIALS}))
def test_python(page, place, given, monkeypatch):
    monkeypatch.chdir(place)
    text = "\n".join(b.text for b in of("python") if b.page == page)
    names = {"__name__": page, **given.get(page, {})}
    out = io.StringIO()
    if "127.0.0.1:8000" in text:
        with served(place / "runs" / "demo" / "composed") as port, redirect_stdout(out):
            exec(compile(text.replace(":8000", f":{port}"), page, "exec"), names)
    else:
        with redirect_stdout(out):
            exec(compile(text, page, "exec"), names)
    assert out.getvalue().strip() or "print(" not in text


def plain(line: str) -> str:
    """A line of output without what may differ from machine to machine: room, fingerprints, numbers."""
    return re.sub(r"\b[0-9a-f]{64}\b|[+\-−]?\d[\d.,]*", "#", " ".join(line.split()))


def run(words: list[str]) -> str:
    """What a command says, on both streams."""
    said, argv = io.StringIO(), sys.argv
    sys.argv = words
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as stop:
        assert not stop.code, f"{words}\n{said.getvalue()}"
    finally:
        sys.argv = argv
    return said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_runs_and_says_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for block in blocks_of(ROOT / page):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": page})
        elif block.language == "sh" and not block.excuse:
            said = [plain(line) for words in commands(block.text) for line in run(words).splitlines()]
        elif block.language == "text":
            missing = [line for line in map(plain, block.text.splitlines()) if line not in said]
            assert missing == [], (str(block), said)
