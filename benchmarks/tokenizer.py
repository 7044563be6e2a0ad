"""Characters per token and speed of the tokenizers, on held-out pages of the embedded texts.

    python benchmarks/tokenizer.py              # the table of docs/tokenizer.md
    python benchmarks/tokenizer.py --runs       # encoding long runs of one character and one long line

Pages are held out by a hash of their id (the same pages in each language). Speed is that of
`treering.tokenizer.encode` in processor time on one core, for whole pages and for single lines.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from treering.corpus import embedded, read_documents, split_of
from treering.tokenizer import encode, train

LANGUAGES = ("ru", "zh", "en")


def pages(split: str, validation: float) -> dict[str, list[str]]:
    """Texts by language of the pages on one side of the split."""
    return {
        language: [
            document.text
            for document in read_documents(embedded(language))
            if split_of(document.id, validation) == split
        ]
        for language in LANGUAGES
    }


def rate(tokenizer: PreTrainedTokenizerFast, texts: list[str], repeats: int = 3) -> tuple[float, float]:
    """(characters per token, best MB/s of a few encodings)."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        ids = encode(tokenizer, texts)
        seconds.append(time.process_time() - start)
    size = sum(len(text.encode()) for text in texts)
    return sum(map(len, texts)) / sum(map(len, ids)), size / min(seconds) / 1e6


def compare(sizes: list[int], validation: float, console: Console) -> None:
    """One row for each vocabulary and merge order."""
    shown, held_out = pages("train", validation), pages("validation", validation)
    for language in LANGUAGES:
        said = [
            f"{len(texts):,} pages, {sum(map(len, texts)):,} characters"
            for texts in (shown[language], held_out[language])
        ]
        console.print(f"{language}: trained on {said[0]}; measured on {said[1]}")
    columns = [f"{language} {what}" for what in ("chars/token", "MB/s pages", "MB/s lines") for language in LANGUAGES]
    table = Table("vocabulary", "merges", "train s", *columns, box=None)
    for vocab_size in sizes:
        for merges in ("longest-first", "bpe"):
            start = time.process_time()
            tokenizer = train(shown, vocab_size, merges=merges)
            seconds = time.process_time() - start
            long = [rate(tokenizer, held_out[language]) for language in LANGUAGES]
            short = [rate(tokenizer, "\n".join(held_out[language]).split("\n")) for language in LANGUAGES]
            cells = [f"{c:.2f}" for c, _ in long] + [f"{s:.1f}" for _, s in long] + [f"{s:.1f}" for _, s in short]
            table.add_row(f"{vocab_size:,}", merges, f"{seconds:.1f}", *cells)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak memory of the whole benchmark: {peak:,.0f} MiB")


def runs(megabytes: float, console: Console) -> None:
    """Encoding speed where a careless tokenizer is quadratic."""
    held_out = pages("validation", 0.2)
    line = {language: "".join(held_out[language]).replace("\n", " ") for language in LANGUAGES}
    patterns = {
        **{f"one line of {language}": text for language, text in line.items()},
        "en without spaces": line["en"].replace(" ", ""),
        "one letter": "a",
        "one ideograph": "中",
        "spaces": " ",
        "line ends": "\n",
        "emoji": "😀",
        "combining marks": "\u0301",
        "dashes": "-",
        "NUL": "\0",
    }
    sizes = {
        "bpe 4,096": (4_096, "bpe"),
        "bpe 65,536": (65_536, "bpe"),
        "longest-first": (65_536, "longest-first"),
    }
    tokenizers = {
        name: train(pages("train", 0.2), size, merges=merges)  # type: ignore[arg-type]
        for name, (size, merges) in sizes.items()
    }
    table = Table(f"{megabytes:g} MB of", *(f"{name}: MB/s" for name in tokenizers), box=None)
    for name, pattern in patterns.items():
        text = pattern * max(1, round(megabytes * 1e6 / len(pattern.encode())))
        table.add_row(name, *(f"{rate(tokenizer, [text], repeats=1)[1]:.1f}" for tokenizer in tokenizers.values()))
    console.print(table)


def main() -> None:
    """Parse the command line and run one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4_096, 65_536, 131_072], help="vocabularies")
    parser.add_argument("--validation", type=float, default=0.1, help="share of pages held out")
    parser.add_argument("--runs", action="store_true", help="long runs and lines instead of pages")
    parser.add_argument("--megabytes", type=float, default=5.0, help="size of each run")
    arguments = parser.parse_args()
    console = Console(width=200, highlight=False)
    if arguments.runs:
        runs(arguments.megabytes, console)
    else:
        compare(arguments.sizes, arguments.validation, console)


if __name__ == "__main__":
    main()
