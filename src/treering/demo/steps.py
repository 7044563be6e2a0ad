"""What every demo does: claim its directory, say what it is at, and write what is complete."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering import __version__
from treering.errors import TreeringError
from treering.evaluation import Row, generate
from treering.output import write_file

PROMPTS = {
    "ru": "Чтобы открыть диалоговое окно",
    "zh": "要打开此对话框，请选择",
    "en": "To open this dialog, choose",
}
TEMPERATURE = 0.7
"""Of the sample texts: cool enough for a small model to stay on its feet."""


@dataclass(frozen=True)
class DemoResult:
    """Bits per byte of every model on every language, and what they say of the composition."""

    rows: list[Row]
    findings: list[str]


def claim(output: Path, what: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Make ``output`` a demo's own, with some ``files`` in it; refuse what something else left there.

    Args:
        what: tells this demo from others.

    Raises:
        TreeringError: the directory holds something else, or a demo of another kind, size or version.
    """
    mark, own = output / "demo.json", json.dumps({**what, "treering": __version__})
    if mark.exists():
        if mark.read_text() != own:
            raise TreeringError(
                f"{output} holds a demo of another kind, size or version. Choose another output directory."
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise TreeringError(f"{output} already exists with other content. Choose another output directory.")
    else:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_file(output / name, text)
        write_file(mark, own)


def step(console: Console, name: str, what: str) -> None:
    """Say what is made now."""
    console.print(f"[bold]{name}[/]  {what}", highlight=False)


def save(output: Path, result: DemoResult) -> None:
    """Write the results; the report, which follows, is the last that a demo makes."""
    write_file(output / "results.json", json.dumps(result.rows, indent=2))
    write_file(output / "findings.txt", "\n".join(result.findings))


def saved(output: Path) -> DemoResult:
    """What `save` wrote."""
    return DemoResult(
        json.loads((output / "results.json").read_text()), (output / "findings.txt").read_text().splitlines()
    )


def samples(models: Iterable[tuple[str, PreTrainedModel]], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """What models write after each of `PROMPTS`; they may be loaded one after the other."""
    return [
        {
            "model": name,
            "pieces": [
                {
                    "language": language,
                    "prompt": prompt,
                    "continuation": generate(model, tokenizer, prompt, 48, TEMPERATURE, seed=1),
                }
                for language, prompt in PROMPTS.items()
            ],
        }
        for name, model in models
    ]


def machine() -> str:
    """What the demo ran on, in words."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def run_in_words(run: Mapping[str, float]) -> str:
    """What a training run took and reached."""
    return (
        f"{run['tokens']:,} tokens in {run['seconds']:,.0f} s ({run['tokens_per_second']:,.0f} tokens/s), "
        f"validation {run['validation_bits_per_byte']:.3f} bits/byte"
    )
