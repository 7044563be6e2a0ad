"""Damaged and hostile files for everything that reads: each is read, or refused with a message, quickly and in place.

python benchmarks/fuzz.py --inputs 10000 --seed 0 [READER …]

A reader gets real files with a few bytes, values, lines or whole files changed. It runs in a child process that a
watcher kills when it hangs, in a tree whose every other file is looked at afterwards. An input that ends in anything
but a result or a TreeringError is kept (--keep DIRECTORY) and its change printed, so that it can become a test.
With --atheris SECONDS, readers in pure Python are searched by coverage as well (pip install atheris).
"""

from __future__ import annotations

import argparse
import bz2
import copy
import gzip
import io
import json
import lzma
import os
import random
import re
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

SLOW, LARGE, HANGS = (
    10.0,
    1024,
    60.0,
)  # seconds of a processor; MiB beyond what was held; seconds until the watcher kills
LIMIT = 8 * 2**30  # bytes of address space beyond what the process had, so that nothing fills the machine

Case = dict[str, Any]
"""Files of a directory by name: bytes, or an `Odd` thing in a file's place."""


@dataclass(frozen=True)
class Odd:
    """What stands where a file should: a link to somewhere, a fifo, a directory."""

    kind: str
    target: str = ""


ODD = (
    Odd("link", "../outside/file"),
    Odd("link", "/etc/hostname"),
    Odd("link", "manifest.json"),
    Odd("fifo"),
    Odd("directory"),
)


@dataclass(frozen=True)
class Reader:
    """What reads a directory, real directories for it to begin with, and how their files are changed."""

    read: Callable[[Path], object]
    seeds: list[Case]
    change: Callable[[random.Random, str, bytes, list[bytes]], bytes]
    python: bool = False  # all of it Python, for atheris to see


# ----------------------------------------------------------------------------------------------------- changes

NUMBERS = (0, 1, 2, -1, 127, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
STRINGS = (
    "",
    " ",
    ".",
    "..",
    "../../outside/file",
    "/etc/passwd",
    "a/../../../outside",
    "nul\0nul",
    "\x1b[31mred",
    "\u202eevil",
    "\ud800",
    "x" * 5_000,
    "hub:a/b",
    "embedded:ru",
    "true",
    "1e400",
    "nan",
    "-1",
    "\U0001f600",
    "<script>",
    "[red]",
    "%s%n",
    "float128",
    "__class__",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    *NUMBERS,
    10**30,
    -(2**63) - 1,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    *STRINGS,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 300,
    {str(n): n for n in range(50)},
)
YAML = (
    "2024-01-01",
    "2024-99-99",
    "!!bool x",
    "!!int x",
    "!!float x",
    "!!binary x",
    "!!timestamp 1",
    "!!set {a, b}",
    "!!python/object:os.system x",
    ".inf",
    "-.inf",
    ".nan",
    "1e400",
    "0x" + "f" * 40,
    "9" * 5_000,
    "1:59:59",
    "[" * 400,
    "{a: " * 500,
    "- " * 400,
    "&a [*a]",
    "&a {<<: *a}",
    "*b",
    "<<",
    "{<<: 1}",
    "? [a]",
    "{1: 2, 1: 3}",
    "{a: 1, a: 2}",
    '"\\ud800"',
    '"\\0"',
    '"\\e[31m"',
    "|\n  x",
    ">-",
    "@",
    "`",
    "%",
    "\t",
    "'",
    '"',
    "#",
    "---",
    "...",
    "~",
    "=",
    "[1, 1]",
    "-1",
    "1_0",
    "0o7",
    "!<!> 1",
    "&x",
)


def change_bytes(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """A few bits, bytes, numbers or stretches; more often near the beginning and the end, where formats say much."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(changed)
        low = rng.choice((0, 0, max(0, size - 64), max(0, size - 600)))
        at = rng.randrange(low, min(size, low + rng.choice((64, 600, size + 1))) + 1) if size else 0
        kind = rng.randrange(10)
        if kind < 3 and at < size:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and at < size:
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 4:
            width = rng.choice((2, 4, 8))
            number = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
            changed[at : at + width] = number
        elif kind == 5:
            del changed[at : at + rng.choice((1, 2, 8, 100, size))]
        elif kind == 6:
            changed[at:at] = rng.choice(
                (rng.randbytes(rng.choice((1, 4, 40))), rng.choice(STRINGS).encode("utf-8", "replace"))
            )
        elif kind == 7:
            length = rng.choice((1, 8, 100))
            changed[at:at] = changed[at : at + length] * rng.choice((1, 3))
        elif kind == 8 and others:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            changed[at : at + rng.choice((0, 8, 100))] = other[begin : begin + rng.choice((8, 100, 1_000))]
        elif kind == 9 and (digits := list(re.finditer(rb"\d+", bytes(changed[at : at + 200])))):
            span = rng.choice(digits).span()
            changed[at + span[0] : at + span[1]] = str(rng.choice(NUMBERS)).encode()
    return bytes(changed)


def change_value(rng: random.Random, value: Any) -> Any:
    """One value somewhere inside, put in place of another, renamed, repeated, left out or wrapped up."""
    if rng.random() < 0.25 or not isinstance(value, list | dict) or not value:
        kind = rng.randrange(8)
        if kind == 0:
            return [value]
        if kind == 1:
            return {"x": value}
        if kind == 2 and isinstance(value, list):
            return value * rng.choice((2, 100))
        if kind == 3 and isinstance(value, int | float):
            return -value
        if kind == 4 and isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(STRINGS) + value[at:]
        if kind == 5:
            return str(value)[:10_000]
        return rng.choice(VALUES)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = value.copy()
    kind = rng.randrange(20)
    if kind == 0:
        copy.pop(key)
    elif kind == 1 and isinstance(copy, dict):
        copy[rng.choice((*STRINGS, *copy))] = copy[key]
    elif kind == 2 and isinstance(copy, dict):
        copy[rng.choice(STRINGS)] = copy.pop(key)
    else:
        copy[key] = change_value(rng, copy[key])
    return copy


def change_json(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """The values of a JSON file, or its bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, name, content, others)
    if rng.random() < 0.005:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b'"', b"9" * 10_000, b"\xff\xfe{\0}\0"))
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = change_value(rng, value)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def change_lines(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """One line of JSON lines, or bytes."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.7 and lines[at]:
        lines[at] = change_json(rng, name, lines[at], others)
        return b"\n".join(lines)
    return change_bytes(rng, name, content, others)


def change_yaml(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """A value, a line or the indentation of a YAML file, its values as JSON, or its bytes."""
    import yaml

    kind = rng.randrange(10)
    if kind == 0:
        return change_bytes(rng, name, content, others)
    if kind < 4:
        return change_json(rng, name, json.dumps(yaml.safe_load(content)).encode(), others)
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        if kind < 8:
            head, colon, _ = lines[at].partition(":")
            lines[at] = head + colon + " " + rng.choice((*YAML, *map(str, NUMBERS)))
        elif kind == 8:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice((lines[at], *YAML)))
        else:
            lines[at] = rng.choice((" ", "\t", "  ", "- ", "? ", "")) + lines[at].strip()
    return "\n".join(lines).encode("utf-8", "replace")


def change_safetensors(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """The header's values, with its length right or wrong, or bytes."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.3:
        return change_bytes(rng, name, content, others)
    header = change_json(rng, name, content[8 : 8 + size], others)
    length = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return length.to_bytes(8, "little") + header + content[8 + size :]


def change_by_name(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """As the file's name says."""
    kinds = {".json": change_json, ".yaml": change_yaml, ".jsonl": change_lines, ".safetensors": change_safetensors}
    return kinds.get(Path(name).suffix, change_bytes)(rng, name, content, others)


def changed(rng: random.Random, reader: Reader) -> Case:
    """One of the reader's directories with one or two files changed."""
    case = dict(rng.choice(reader.seeds))
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(case))
        if isinstance(case[name], Odd):
            continue
        if len(case) > 1 and rng.random() < 0.05:
            case[name] = rng.choice((b"", *ODD, case[rng.choice(list(case))]))
        elif len(case) > 1 and rng.random() < 0.02:
            del case[name]
        else:
            others = [found for seed in reader.seeds for found in seed.values() if isinstance(found, bytes)]
            try:
                case[name] = reader.change(rng, name, case[name], others[:20])
            except Exception:  # an earlier change left nothing that has values or lines
                case[name] = change_bytes(rng, name, case[name], others[:20])
    return case


# ----------------------------------------------------------------------------------------------------- readers


def readers(place: Path) -> dict[str, Callable[[], Reader]]:
    """All that are tried, by name; each makes what it begins with in ``place`` when it is wanted."""
    from treering.composition import describe as describe_model
    from treering.composition.directory import load_model, read_composition
    from treering.corpus import Corpus, CorpusRecipe, Source, read_documents
    from treering.errors import TreeringError
    from treering.evaluation.harness.bigbench import task
    from treering.growth import GrowthRecipe
    from treering.growth.plan import steps
    from treering.growth.recipe import as_plan
    from treering.growth.study import StudyRecipe
    from treering.publishing.card import renewed
    from treering.publishing.leaks import leaks
    from treering.recipe import load_recipe
    from treering.seal import damage
    from treering.substrate import load as load_substrate
    from treering.tokenizer import load as load_tokenizer
    from treering.training import ExpertRecipe

    def recipe(schema: Any, *texts: str) -> Reader:
        def read(directory: Path) -> None:
            found = load_recipe(directory / "recipe.yaml", schema)
            if schema is GrowthRecipe:
                steps(as_plan(found.plan))

        return Reader(read, [{"recipe.yaml": text.encode()} for text in texts], change_yaml, python=True)

    def documents(name: str, content: list[bytes], change: Any = change_by_name, **fields: Any) -> Reader:
        def read(directory: Path) -> None:
            for document in read_documents(Source(path=str(directory / name), max_document_bytes=2**24, **fields)):
                document.id.encode(), document.text.encode()

        return Reader(read, [{name: found} for found in content], change, python=name.endswith((".jsonl", ".txt")))

    def packed(suffix: str, pack: Callable[[bytes], bytes]) -> Reader:
        bombs = [b"x" * 10**8, b"\n" * 10**7, b'{"text": "a"}\n' * 10**4, b"[" * 10**6, b'{"text": [' + b"{}," * 10**7]
        seeds = [pack(found) for found in (*[LINES] * 12, LINES * 20, b"", *bombs)] + [pack(LINES) + pack(LINES)]

        def change(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
            if rng.random() < 0.3:
                return pack(change_lines(rng, name, LINES, others[:1]))
            return content if rng.random() < 0.1 else change_bytes(rng, name, content, others)

        return documents(f"a.jsonl{suffix}", seeds, change)

    def corpus(directory: Path) -> None:
        found = Corpus.load(directory)
        for block in found.train:
            block["input_ids"].sum()
        for split in (found.validation, found.calibration):
            split.to_list()

    def composed(directory: Path) -> None:
        read_composition(directory)
        load_model(directory)

    def question_set(directory: Path) -> None:
        task("bigbench_set", directory / "task.json")

    def told(directory: Path) -> None:
        refused = None
        for tell in (describe_model, leaks, renewed):  # each on its own
            try:
                tell(directory)
            except TreeringError as error:
                refused = refused or error
        if refused:
            raise refused

    import zstandard

    made = _Made(place)
    return {
        "recipe (train)": lambda: recipe(ExpertRecipe, *EXPERT),
        "recipe (grow)": lambda: recipe(GrowthRecipe, *GROW),
        "recipe (study)": lambda: recipe(StudyRecipe, *STUDY),
        "recipe (corpus)": lambda: recipe(CorpusRecipe, *CORPUS),
        "JSON lines": lambda: documents("a.jsonl", [LINES, PARAGRAPHS]),
        "JSON array": lambda: documents("a.json", [ARRAY, b"[]", ARRAY.replace(b",", b" ,\n\t")]),
        "CSV": lambda: documents("a.csv", [ROWS, ROWS.replace(b"\n", b"\r\n")], change_bytes),
        "TSV": lambda: documents("a.tsv", [ROWS.replace(b",", b"\t")], change_bytes),
        "text": lambda: documents("a.txt", [TEXT, TEXT.replace(b"\n", b"\r\n"), "слово\n".encode() * 50], change_bytes),
        "gz": lambda: packed(".gz", gzip.compress),
        "bz2": lambda: packed(".bz2", bz2.compress),
        "xz": lambda: packed(".xz", lambda found: lzma.compress(found, preset=0)),
        "zst": lambda: packed(".zst", zstandard.compress),
        "Parquet": lambda: documents("a.parquet", made.tables(), change_bytes),
        "prepared corpus": lambda: Reader(corpus, [made.corpus()], change_by_name),
        "substrate": lambda: Reader(load_substrate, made.substrates(), change_by_name),
        "tokenizer": lambda: Reader(load_tokenizer, [made.tokenizer()], change_by_name),
        "seal": lambda: Reader(damage, [made.sealed()], change_by_name, python=True),
        "composition": lambda: Reader(composed, made.compositions(), change_by_name),
        "question set": lambda: Reader(question_set, [{"task.json": asked} for asked in QUESTIONS], change_json),
        "model told": lambda: Reader(told, made.models(), change_by_name),
    }


LINES = b"".join(
    json.dumps(row, ensure_ascii=False).encode() + b"\n"
    for row in (
        {"id": "a", "text": "Ёлка\nи 雪", "more": {"a": [1, 2.5, None]}},
        {"id": 7, "text": "word " * 100},
        {"paragraphs": [{"id": "1", "text": "one"}, "two"]},
        {"id": None, "text": "no id"},
    )
)
PARAGRAPHS = b'{"id": "x", "paragraphs": [{"text": "a"}, {"text": "b"}]}\n' * 3
ARRAY = b"[" + b", ".join(LINES.splitlines()) + b"]"
ROWS = 'id,text,more\na,"Ёлка, и\n""снег""",1\n7,word word word,\n,"no id",x\n'.encode()
QUESTIONS = (
    json.dumps(
        {
            "name": "animals",
            "examples": [{"input": "A cat is", "target_scores": {"an animal": 1, "a plant": 0}}] * 3,
            "task_prefix": "Say what it is.\n",
            "append_choices_to_input": False,
            "metrics": ["multiple_choice_grade"],
        }
    ).encode(),
    json.dumps(
        {"name": "sums", "examples": [{"input": "1 + 1", "target": ["2", "two"]}, {"input": "", "target": "0"}]}
    ).encode(),
)
TEXT = ("A line of text.\n" * 20 + "\n" + "Другая строка.\n" * 10).encode()
TRAINING = """
training:
  epochs: 1.5
  batch_tokens: 1024
  learning_rate: 3.0e-3
  schedule: cosine
  warmup: 0.25
  betas: [0.9, 0.99]
  precision: float32
  seed: 0
"""
EXPERT = (
    "substrate: s\ndata: d\noutput: o\nbackbone:\n  preset: tiny\n  layers: 2\n  d_model: 64\n  heads: 2\n" + TRAINING,
    "substrate: s\ndata: d\noutput: o\ntraining: &t\n  tokens: 1_000_000\n  checkpoint_steps: 5\n",
)
GROW = (
    "substrate: s\ndata: d\noutput: o\nplan:\n  way: copied\n  depth: 6\n  low: 2\n  base: 0.3\n  width: 4\n"
    "  head: true\n" + TRAINING,
    "model: m\ndata: d\noutput: o\nplan: paper-6\nprefix: int8\nabilities: false\n",
    "model: m\ndata: d\noutput: o\nplan:\n  budget: 1000000\n  stages:\n  - new: 1-2\n    share: 0.5\n"
    "    rate: [1.0, 1.0]\n  - new: '3,4'\n    train: 2-4\n    turns: {width: 2}\n    tokens: 1000\n"
    "  - train: 1-4\n    share: 0.5\n    lora: {rank: 8, alpha: 2.0}\n    keep_moments: true\n",
)
STUDY = (
    "tokenizer: t\ndata: d\noutput: o\nplan: copied-6\nkinds: [glyph, code]\nseeds: [0, 1]\nmore:\n  a: paper-6\n"
    "  b: {way: turns, depth: 4}\nsearch:\n  learning_rate: [0.004, 0.008]\n  warmup: [0.3]\n" + TRAINING,
)
CORPUS = (
    "tokenizer: t\noutput: o\nblock_size: 64\nvalidation: 0.1\ncalibration: 0.1\nmix: repeat\nseed: 3\nsources:\n"
    "- path: a.txt\n  weight: 0.5\n  part: 1/2\n  limit: 10\n- path: hub:a/b\n  weight: 1\n  text_field: t\n"
    "- b.jsonl.gz\n",
)


@dataclass
class _Made:
    """Real directories to begin with, small and made when first asked for."""

    place: Path
    done: dict[str, Any] = field(default_factory=dict)

    def backend(self) -> Any:
        if "backend" not in self.done:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
            from transformers import PreTrainedTokenizerFast

            backend = Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            specials = ["<pad>", "</s>"]
            backend.train_from_iterator(
                [TEXT.decode()],
                trainers.BpeTrainer(
                    vocab_size=280, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
                ),
            )
            self.done["backend"] = PreTrainedTokenizerFast(
                tokenizer_object=backend, pad_token="<pad>", eos_token="</s>"
            )
        return self.done["backend"]

    def tokenizer(self) -> Case:
        from treering import tokenizer as tokenizers

        (self.place / "tokenizer").mkdir(exist_ok=True)
        tokenizers.save(self.backend(), self.place / "tokenizer")
        return _case(self.place / "tokenizer")

    def corpus(self) -> Case:
        from treering.corpus import prepare

        source = self.place / "pages.jsonl"
        rows = ({"id": f"{n}", "text": f"page {n} with words " * 8} for n in range(60))
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare([source], self.backend(), self.place / "corpus", block_size=32, validation=0.1, calibration=0.1)
        (self.place / "corpus" / "manifest.sha256").unlink()  # or nothing behind it would be tried
        return _case(self.place / "corpus")

    def substrates(self) -> list[Case]:
        found = []
        for kind, width in (("random", 8), ("code", 16), ("glyph", 16)):
            self.substrate(kind, width)
            case = _case(self.place / f"substrate-{kind}-{width}")
            found.append({name: content for name, content in case.items() if name.startswith("substrate")})
        return found

    def substrate(self, kind: Any, width: int) -> Any:
        from treering import substrate as substrates

        directory = self.place / f"substrate-{kind}-{width}"
        made = substrates.build(self.backend(), width, kind, cell=16 if kind == "glyph" else None)
        directory.mkdir(exist_ok=True)
        made.save(directory, self.backend())
        return made

    def compositions(self) -> list[Case]:
        import torch

        from treering import tokenizer as tokenizers
        from treering.backbone import Preset, dock, gpt_neox
        from treering.composition import compose_directories
        from treering.growth.blocks import deepen

        substrate = self.substrate("random", 8)
        config = gpt_neox(Preset(2, 8, 2, len(self.backend()), context=16))
        made: dict[str, Any] = {}
        for number, name in enumerate(("ru", "zh")):
            torch.manual_seed(number)
            made[name] = dock(copy.deepcopy(config), substrate, self.backend())
        made["law"] = copy.deepcopy(made["ru"])  # a branch: ru is its trunk
        deepen(made["law"], (3,), "random", residual_init=False)
        for name, expert in made.items():
            expert.save_pretrained(self.place / name)
            tokenizers.save(self.backend(), self.place / name)
        compose_directories({name: self.place / name for name in made}, self.place / "joined")
        case = _case(self.place / "joined")
        assert any(name.startswith("trunk-") for name in case)
        # What decides most is changed as often as all tokenizers together.
        return [case, {name: found for name, found in case.items() if "token" not in name or name == "tokenizer.json"}]

    def models(self) -> list[Case]:
        """Compositions, and before them an expert with a record of its training and a card with scores."""
        compositions, directory = self.compositions(), self.place / "ru"
        source = {"name": "ru", "source": {"path": "embedded:ru", "licence": "MPL-2.0"}, "used_documents": 12}
        record = {
            "origin": {"data": {"sources": [source], "tokenizer": {"separator": "</s>"}}, "sources": ["ru"]},
            "settings": {"learning_rate": 0.003, "schedule": "cosine", "warmup": 0.1, "precision": "float32"},
            "measured": {"tokens": 100_000, "validation_bits_per_byte": 1.25},
        }
        (directory / "training.json").write_text(json.dumps(record))
        from treering.publishing.card import renew_card

        bits = {
            "model": "ru",
            "text": "ru",
            "documents": 5,
            "bytes": 900,
            "bits_per_byte": 1.2,
            "low": 1.1,
            "high": 1.3,
        }
        renew_card(directory, "mit", [bits])
        return [_case(directory), *compositions]

    def sealed(self) -> Case:
        from treering.seal import seal

        directory = self.place / "sealed"
        (directory / "sub").mkdir(parents=True)
        (directory / "a.bin").write_bytes(b"abc" * 100)
        (directory / "sub" / "b.bin").write_bytes(b"")
        seal(directory)
        return _case(directory)

    def tables(self) -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [f"text {n} слово " * 5 for n in range(60)]
        columns: list[dict[str, Any]] = [
            {"id": list(range(60)), "text": texts},
            {"id": [f"n{n}" for n in range(60)], "text": [*texts[:59], None], "more": [1.5] * 60},
            {"paragraphs": [[{"text": "a"}, {"text": "b"}], [{"text": "c"}]] * 10},
            {"text": pa.array(texts).dictionary_encode(), "id": pa.array(range(60), pa.timestamp("us"))},
            {"text": pa.array(texts, pa.large_string()), "id": [[n] for n in range(60)]},
            {"text": pa.array(range(60), pa.duration("s"))},
            {"paragraphs": [["a", "b"]] * 10, "id": [1.5] * 10},
        ]
        found = []
        for number, table in enumerate(columns):
            for compression in ("snappy", "zstd", "none", "gzip", "brotli", "lz4"):
                buffer = io.BytesIO()
                options = {"write_page_checksum": number == 1, "data_page_version": "2.0" if number == 2 else "1.0"}
                pq.write_table(pa.table(table), buffer, compression=compression, **options)
                found.append(buffer.getvalue())
        return found


def _case(directory: Path) -> Case:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------------ running


@dataclass
class Tally:
    """What became of a reader's inputs, and the first of each kind that should not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    largest: float = 0.0
    seconds: float = 0.0


def write_case(case: Case, place: Path) -> None:
    """Lay a case out as a fresh directory."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in case.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.kind == "link":
            path.symlink_to(content.target)
        elif content.kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir(exist_ok=True)


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a directory, without following links: kind, size, time of change."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        directory = stat.S_ISDIR(status.st_mode)
        found[str(path)] = (status.st_mode, 0 if directory else status.st_size, status.st_mtime_ns)
    return found


def peak() -> float:
    """MiB that the process held at most since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak() -> float:
    """Begin anew to look for the peak; returns what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def child(reader: Reader, name: str, seed: int, inputs: Iterator[int], root: Path, out: int) -> None:
    """Read inputs, and write a line of JSON for each to the pipe ``out``."""
    from treering.errors import TreeringError

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT, held + LIMIT))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for number in inputs:
        write_case(changed(random.Random(f"{seed} {name} {number}"), reader), root / "place")
        before, held_before = snapshot(root), reset_peak()
        begun, why = time.process_time(), ""
        try:
            reader.read(root / "place")
            outcome = "accepted"
        except TreeringError as error:
            outcome = "refused"
            try:
                str(error).encode("utf-8")
            except UnicodeEncodeError:
                outcome, why = "uncaught", "a message that no terminal can print"
        except BaseException as error:  # Rust panics are no Exception
            outcome = "uncaught"
            why = (
                f"{type(error).__name__}: {error}"[:300] + "\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
            )
        seconds, grown = time.process_time() - begun, peak() - held_before
        outside = sorted(key for key, value in (snapshot(root).items() ^ before.items()))
        record = {"n": number, "o": outcome, "why": why, "s": seconds, "m": grown, "w": outside[:3]}
        os.write(out, json.dumps(record).encode() + b"\n")


def run(reader: Reader, name: str, seed: int, inputs: int, root: Path) -> Tally:
    """All inputs of one reader; a child that dies or hangs is replaced, and goes on behind the input that did it."""
    tally, number, begun = Tally(), 0, time.perf_counter()
    while number < inputs:
        read_end, write_end = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(read_end)
            try:
                child(reader, name, seed, iter(range(number, inputs)), root, write_end)
            finally:
                os._exit(0)
        os.close(write_end)
        rest, hung = b"", False
        while True:
            if not select.select([read_end], [], [], HANGS)[0]:
                os.kill(process, signal.SIGKILL)
                hung = True
                break
            if not (piece := os.read(read_end, 2**16)):
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                number = _count(tally, json.loads(line)) + 1
        os.close(read_end)
        _, status = os.waitpid(process, 0)
        if hung:
            _note(tally, "slow", number, "killed by the watcher")
        elif number < inputs:
            _note(tally, "crashed", number, f"the process ended with status {status}")
        number += number < inputs
    tally.seconds = time.perf_counter() - begun
    return tally


def _count(tally: Tally, record: dict[str, Any]) -> int:
    number: int = record["n"]
    tally.counts[record["o"]] += 1
    tally.slowest, tally.largest = max(tally.slowest, record["s"]), max(tally.largest, record["m"])
    if record["o"] == "uncaught":
        tally.counts["uncaught"] -= 1
        _note(tally, "uncaught", number, record["why"])
    for kind, is_so in (("slow", record["s"] > SLOW), ("large", record["m"] > LARGE), ("outside", bool(record["w"]))):
        if is_so:
            _note(tally, kind, number, f"{record['s']:.1f} s, {record['m']:.0f} MiB {record['w'] or ''}")
    return number


def _note(tally: Tally, kind: str, number: int, why: str) -> None:
    tally.counts[kind] += 1
    headline = why.splitlines()[0][:60] if why else ""
    tally.found.setdefault(f"{kind} {re.sub(r'[0-9]+', '#', headline)}", f"input {number}: {why}")


def describe(case: Case, reader: Reader) -> str:
    """What was changed in a case, for people."""
    seed = min(reader.seeds, key=lambda each: sum(each.get(name) != case.get(name) for name in each | case))
    lines = []
    for name in sorted({name for name in seed | case if seed.get(name) != case.get(name)}):
        content = case.get(name, "missing")
        whole = not isinstance(content, bytes) or len(content) <= 300
        lines.append(f"  {name}: {content if whole else content[:300]!r}" + " …" * (not whole))
    return "\n".join(lines)


def guided(reader: Reader, seconds: int, root: Path, seed: int) -> int:
    """Search a reader by coverage (atheris) in a child process; returns its exit status, 0 if nothing was found."""
    import atheris

    from treering.errors import TreeringError

    name = next(name for name in reader.seeds[0] if name.endswith((".json", ".jsonl", ".txt", ".yaml")))
    corpus = root / "found"
    corpus.mkdir(exist_ok=True)
    for number, case in enumerate(reader.seeds):
        (corpus / f"{number}").write_bytes(case[name])

    def try_one(content: bytes) -> None:
        (root / "place" / name).write_bytes(content)
        try:
            reader.read(root / "place")
        except TreeringError as error:
            str(error).encode()

    process = os.fork()
    if process == 0:
        write_case(reader.seeds[0], root / "place")
        flags = [
            f"-max_total_time={seconds}",
            f"-seed={seed + 1}",
            "-timeout=10",
            "-rss_limit_mb=3000",
            "-max_len=4096",
        ]
        atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={root}/", str(corpus)], try_one)
        atheris.Fuzz()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help="names or beginnings of names; all if none is given")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="directory for what should not have been")
    parser.add_argument("--atheris", type=int, default=0, metavar="SECONDS", help="search each by coverage, too")
    arguments = parser.parse_args()
    if arguments.atheris:
        import atheris

        with atheris.instrument_imports(include=["treering", "yaml"]):
            import treering.corpus
            import treering.growth.study  # noqa: F401
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    columns = ("refused", "accepted", "uncaught", "slow", "large", "outside", "crashed")
    heads = ("refused", "accepted", "uncaught", "> 10 s", "> 1 GB", "writes outside", "crashes")
    table = Table("reader", "inputs", *heads, "slowest, s", "largest, MiB", "inputs/s")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        os.environ["HF_HOME"] = f"{scratch}/hub"
        (Path(scratch) / "made").mkdir()
        for name, make in readers(Path(scratch) / "made").items():
            if arguments.readers and not any(name.startswith(wanted) for wanted in arguments.readers):
                continue
            root = Path(scratch) / "root"
            shutil.rmtree(root, ignore_errors=True)
            (root / "outside").mkdir(parents=True)
            (root / "outside" / "file").write_text("precious")
            reader = make()
            tally = run(reader, name, arguments.seed, arguments.inputs, root)
            cells = (f"{tally.counts[column]:,}" for column in columns)
            speed = f"{arguments.inputs / tally.seconds:,.0f}"
            table.add_row(name, f"{arguments.inputs:,}", *cells, f"{tally.slowest:.2f}", f"{tally.largest:.0f}", speed)
            for kind, why in tally.found.items():
                number = int(why.split()[1].rstrip(":"))
                case = changed(random.Random(f"{arguments.seed} {name} {number}"), reader)
                console.print(f"{name}, {kind}\n{why}\n{describe(case, reader)}\n", markup=False, highlight=False)
                if arguments.keep:
                    write_case(case, _fresh(arguments.keep / f"{name}-{number}".replace(" ", "-")))
            if arguments.atheris and reader.python:
                status = guided(reader, arguments.atheris, root, arguments.seed)
                console.print(
                    f"{name}: atheris ended with {status} after {arguments.atheris} s at most", highlight=False
                )
    console.print(table)


def _fresh(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
