"""Five tasks for `treering study continual`, from text that lies on every machine where Treering is installed.

    python benchmarks/continual.py --base runs/demo-yardsticks/en -o runs/continual    # the corpora, and a recipe
    treering study continual runs/continual/recipe.yaml

Russian and Chinese help pages, Python's standard library, C++ headers of PyTorch, and what the installed packages say
of themselves (README files in English). Of a file the first 4,000 characters are read. The base is any model with a
tokenizer; the one above, made by ``benchmarks/composition.py train``, has read English help pages alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import torch
import yaml

from treering import tokenizer as tokenizers
from treering.corpus import Source, prepare, read_documents

CHARACTERS, DOCUMENTS = 4_000, 500


def pages(language: str) -> Iterator[tuple[str, str]]:
    """Help pages that are embedded in Treering."""
    return ((document.id, document.text) for document in read_documents(f"embedded:{language}"))


def files(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Source files, in the order of their names; tests repeat what they test."""
    for path in sorted(folder.rglob(pattern)):
        name = path.relative_to(folder).as_posix()
        if not {"test", "tests", "idle_test", "site-packages", "lib2to3"} & set(Path(name).parts):
            yield name, path.read_text(encoding="utf-8", errors="ignore")


def readmes() -> Iterator[tuple[str, str]]:
    """What packages say of themselves."""
    for found in sorted(distributions(), key=lambda own: own.metadata["Name"].lower()):
        yield found.metadata["Name"], found.metadata.json.get("description") or ""


def passages(texts: Iterable[tuple[str, str]], at_once: int) -> Iterator[dict[str, str]]:
    """The beginnings of texts as documents, or of short collections the whole texts in pieces."""
    for name, text in texts:
        for part in range(0, min(len(text), at_once * CHARACTERS), CHARACTERS):
            piece = text[part : part + CHARACTERS]
            if len(piece) > 500:
                yield {"id": f"{name}#{part // CHARACTERS}", "text": piece}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=50_000, help="that are trained on of each task")
    options = parser.parse_args()
    tokenizer = tokenizers.load(options.base)
    tasks = {
        "ru": (pages("ru"), 1),
        "zh": (pages("zh"), 1),
        "python": (files(Path(sysconfig.get_paths()["stdlib"]), "*.py"), 1),
        "cpp": (files(Path(torch.__file__).parent / "include", "*.h"), 1),
        "readme": (readmes(), 20),
    }
    for task, (texts, at_once) in tasks.items():
        options.output.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(found) for found in itertools.islice(passages(texts, at_once), DOCUMENTS)]
        (options.output / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        source = Source(path=str(options.output / f"{task}.jsonl"), name=task)
        corpus = prepare([source], tokenizer, options.output / task, block_size=256, validation=0.1, calibration=0.05)
        print(f"{task}: {len(lines)} documents, {corpus.manifest.train.tokens:,} tokens")
    order = list(tasks)
    recipe = {
        "model": str(options.base),
        "tasks": {task: str(options.output / task) for task in tasks},
        "orders": [order, ["cpp", "zh", "readme", "ru", "python"]],
        "output": str(options.output / "study"),
        "documents": 20,
        "training": {"tokens": options.tokens, "warmup": 0.1, "evaluations": 1},
    }
    (options.output / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
