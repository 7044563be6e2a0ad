"""Speed and memory of ``treering data prepare`` on generated files, and how fast blocks are read back.

python benchmarks/corpus.py --mb 200
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from treering.corpus import Corpus, read_documents
from treering.training.loss import collate

LANGUAGES = ("ru", "zh", "en")


def pages() -> Iterator[str]:
    """The embedded help pages of all languages, over and over."""
    texts = [d.text for language in LANGUAGES for d in read_documents(f"embedded:{language}")]
    return itertools.cycle(texts)


def write_json_lines(path: Path, size: int) -> int:
    """At least ``size`` bytes, each document with an id and a first line of its own."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(pages()):
            row = {"id": number, "text": f"{number}\n{text}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number % 100 == 0 and path.stat().st_size >= size:
                break
    return path.stat().st_size


def write_lines(path: Path, size: int) -> int:
    """The same as plain text, to be read a document a line: many short documents."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(pages()):
            file.writelines(f"{number} {line}\n" for line in text.splitlines())
            if number % 100 == 0 and path.stat().st_size >= size:
                break
    return path.stat().st_size


def small_tokenizer(directory: Path) -> None:
    """A byte-level BPE of 4,096 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(itertools.islice(pages(), 0, 7_000, 5), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(directory)


def reading_speed(directory: Path, batch: int = 16, seconds: float = 3.0) -> float:
    """Tokens a second of batches drawn at random as tensors, as a data loader draws them."""
    train = Corpus.load(directory).train
    generator = np.random.default_rng(0)
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        rows = collate([train[row] for row in generator.integers(0, len(train), batch).tolist()])
        tokens += rows["input_ids"].numel()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200, help="size of each generated file, in MB")
    parser.add_argument("--tokenizer", help="directory of a tokenizer; by default a byte-level BPE of 4,096 tokens")
    parser.add_argument("--cases", nargs="+", default=["pages", "lines"], choices=["pages", "lines"])
    arguments = parser.parse_args()
    table = Table("documents", "MB", "MB/s", "tokens/s", "peak RSS, MiB", "reading, M tokens/s")
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        tokenizer = arguments.tokenizer or str(room / "tokenizer")
        if not arguments.tokenizer:
            small_tokenizer(room / "tokenizer")
        # Children's peak memory is a running maximum: the case with the smaller peak must come first.
        for case in arguments.cases:
            source = room / ("pages.jsonl" if case == "pages" else "lines.txt")
            size = (write_json_lines if case == "pages" else write_lines)(source, int(arguments.mb * 1e6))
            output = room / case
            start = time.perf_counter()
            program = [sys.executable, "-c", "from treering.cli import main; main()"]
            options = ["--document", "line", "--tokenizer", tokenizer, "--output", str(output)]
            subprocess.run([*program, "data", "prepare", str(source), *options], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            record = Corpus.load(output).manifest.sources[0]
            table.add_row(
                f"{record.documents:,} {case}",
                f"{size / 1e6:.0f}",
                f"{size / 1e6 / seconds:.2f}",
                f"{record.tokens / seconds:,.0f}",
                f"{peak:.0f}",
                f"{reading_speed(output) / 1e6:.1f}",
            )
            source.unlink()
    Console().print(table)


if __name__ == "__main__":
    main()
