"""What branches on one pretrained model cost, beside the model alone and beside whole models.

    python benchmarks/branches.py time   --base DIR    # decoding, and reading a prompt
    python benchmarks/branches.py memory --base DIR    # peak memory, and disk
    python benchmarks/branches.py time   --base DIR --head own
    python benchmarks/branches.py accuracy --base JOINED --questions DIR    # what joining costs on questions


DIR is SmolLM2-135M (or any model of a family that branches). The branches' blocks are drawn at random, so that the base
knows best: what they say does not matter here, but for top_k, which then runs nobody else.

For accuracy, JOINED is a composition with an expert "base", and DIR holds sets of BIG-bench in their own form,
NAME.json.xz (PyPI's sdist bigbench==1.0.0 has them, as task.json; for measuring only).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import lzma
import multiprocessing
import statistics
import tempfile
import time as clock
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_of_decoding
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from treering import backbone
from treering import tokenizer as tokenizers
from treering.composition import ComposedModel, compose, compose_directories, load_model
from treering.composition.reader import said
from treering.corpus import Window, read_documents
from treering.evaluation import require_composition
from treering.evaluation.bits import joined_surprise, window_losses
from treering.growth.blocks import deepen
from treering.tokenizer import encode, separator

LOUD = 30.0
"""By which the random blocks drown what the base knows, so that evidence decides against them at once."""


def grown(base: PreTrainedModel, branches: int, blocks: int, own_head: bool) -> dict[str, PreTrainedModel]:
    """The base, and so many branches of so many blocks on it."""
    depth = len(backbone.blocks(base))
    experts = {"base": base}
    for n in range(branches):
        torch.manual_seed(n)
        branch = copy.deepcopy(base)
        deepen(branch, range(depth + 1, depth + blocks + 1), "random", residual_init=False)
        with torch.no_grad():
            for block in backbone.blocks(branch)[depth:]:
                for output in backbone.residual_outputs(block):
                    output.mul_(LOUD)
        if own_head:
            branch.config.tie_word_embeddings = False
            head = nn.Linear(*reversed(backbone.head(base).weight.shape), bias=False)
            head.weight.data = backbone.head(base).weight.detach() + 1e-3 * torch.randn_like(head.weight)
            branch.set_output_embeddings(head)
        experts[f"branch{n + 1}"] = branch.eval()
    return experts


@torch.inference_mode()
def time(base: Path, console: Console, options: argparse.Namespace) -> None:
    """Median milliseconds of one decoding step after 64 tokens, and of reading 512, each way in turn."""
    experts = grown(load_model(base), options.branches, options.blocks, options.head == "own")
    joined = compose(experts, "evidence")
    texts = (document.text for document in read_documents("embedded:en"))
    words = tokenizers.load(base)("\n".join(itertools.islice(texts, 20)))["input_ids"]
    prompt, page = torch.tensor([words[:64]]), torch.tensor([words[64 : 64 + 512]])
    ways = _ways(joined, experts["base"], prompt, page)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, (begin, count) in ways.items():
            run = begin()
            begun = clock.perf_counter()
            run()
            if turn:  # the first round warms up
                times[name].append(1000 * (clock.perf_counter() - begun) / count)
    for what, reference, parts in (
        ("a token", "base, a token", "parts, a token"),
        ("512 tokens", "base, 512 tokens", "parts, 512 tokens"),
    ):
        result = Table(what, "ms", "of the base alone", "of trunk, branches and heads", box=None)
        for name in (name for name in times if name.endswith(what)):
            ratios = [
                statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
                for other in (reference, parts)
            ]
            row = (f"{statistics.median(times[name]):.1f}", *(f"{ratio:.2f}" for ratio in ratios))
            result.add_row(name.rpartition(",")[0], *row)
        console.print(result)


Run = Callable[[], object]
Begin = Callable[[], Run]
Ways = Mapping[str, tuple[Begin, int]]
"""By name: what makes ready what is timed, and how many tokens that makes."""


def _ways(
    joined: ComposedModel, base: PreTrainedModel, prompt: torch.Tensor, page: torch.Tensor, steps: int = 8
) -> Ways:
    """What is timed, and how many tokens each makes."""

    def decoding(model: PreTrainedModel, rule: str | None = None) -> Begin:
        def begin() -> Run:
            if rule:
                joined.use(rule)
            cache = DynamicCache()
            model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)

            def run() -> None:
                token = prompt[:, -1:]
                for _ in range(steps):
                    output = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    token = output.logits[:, -1:].argmax(-1)

            return run

        return begin

    def reading(model: PreTrainedModel, rule: str | None = None) -> Begin:
        def begin() -> Run:
            if rule:
                joined.use(rule)
            return lambda: model(page, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)

        return begin

    made: dict[str, tuple[Begin, int]] = {
        "base, a token": (decoding(base), steps),
        "parts, a token": (lambda: _parts(joined, prompt, prompt[:, -1:], steps), steps),
    }
    for rule in ("mean", "evidence", "evidence:switch=0.01", "top_k"):
        made[f"joined by {rule}, a token"] = (decoding(joined, rule), steps)
    drawn = joined.expert("branch1")
    made["one expert drawn, a token"] = (decoding(drawn), steps)
    made["base, 512 tokens"] = (reading(base), 1)
    made["parts, 512 tokens"] = (lambda: _parts(joined, page[:, :0], page, 1), 1)
    made["joined by evidence, 512 tokens"] = (reading(joined, "evidence"), 1)
    return made


def _parts(joined: ComposedModel, before: torch.Tensor, new: torch.Tensor, steps: int) -> Run:
    """Trunks, branches and heads each run on states that are at hand, with a cache of their own, and nothing joined."""
    joined.use("mean")
    stems: list[Any] = list(joined.trunks.values())
    uppers = [expert for _, expert in joined.named_experts()]
    modules = [*stems, *(upper.base_model for upper in uppers if upper.config.num_hidden_layers)]
    caches = [DynamicCache(config=module.config) for module in modules]
    embedding = joined.get_input_embeddings()
    if before.shape[1]:
        for module, cache in zip(modules, caches, strict=True):
            module(inputs_embeds=embedding(before), past_key_values=cache, use_cache=True)
    _, readers = joined._readers(None, joined.rule)
    states = embedding(new)
    finals = [states[:, -1:]] * len(readers)

    def run() -> None:
        for _ in range(steps):
            embedding(new)
            for module, cache in zip(modules, caches, strict=True):
                module(inputs_embeds=states, past_key_values=cache, use_cache=True)
            if new.shape[1] == 1:
                said(readers, finals)
            else:  # evidence asks every expert about every token of a prompt
                for reader in readers:
                    reader.log_likelihood(states, new, None)

    return run


def memory(base: Path, console: Console, options: argparse.Namespace) -> None:
    """Peak memory of a process that decodes, and the bytes on disk: the base, all joined on it, all apart."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes,
    ):
        places, tokenizer = {"base": base}, tokenizers.load(base)
        for name, model in grown(load_model(base), options.branches, options.blocks, options.head == "own").items():
            if name != "base":
                places[name] = Path(scratch) / name
                model.save_pretrained(places[name])
                tokenizers.save(tokenizer, places[name])
        compose_directories(places, Path(scratch) / "joined", "evidence")
        nothing, _ = processes.apply(peak_of_decoding, [[], 16])
        result = Table("", "peak MiB above no model", "parameters, MiB", "on disk, MiB", box=None)
        for what, loaded in {
            "the base": [base],
            f"the base and {options.branches} branches joined": [Path(scratch) / "joined"],
            "the same as whole models": list(places.values()),
        }.items():
            peak, held = processes.apply(peak_of_decoding, [loaded, 16])
            disk = sum(path.stat().st_size for place in loaded for path in Path(place).glob("*.safetensors"))
            result.add_row(what, f"{peak - nothing:.0f}", f"{held:.0f}", f"{disk / 2**20:.0f}")
        console.print(result)


def accuracy(base: Path, console: Console, options: argparse.Namespace) -> None:
    """The share of questions of choice that the base alone and the composition answer, from one pass of both."""
    model, tokenizer = require_composition(load_model(base, rule="evidence")), tokenizers.load(base)
    surprise = joined_surprise(model, [model.rule], experts=True)
    result = Table("questions", "items", "base", "joined", "difference, 95% interval", box=None)
    right: list[np.ndarray] = []
    for path in [*sorted(options.questions.glob("*.json.xz")), None]:
        if path is None:
            name, answered = "all", np.concatenate(right)
        else:
            task = json.loads(lzma.decompress(path.read_bytes()))
            items = [item for item in task["examples"] if item.get("target_scores")][: options.items]
            if not items:
                continue
            name, answered = task["name"], _answered(model, tokenizer, surprise, task, items)
            right.append(answered)
        draws = np.random.default_rng(0).integers(len(answered), size=(2000, len(answered)))
        low, high = np.quantile((answered[draws, 1] - answered[draws, 0]).mean(1), [0.025, 0.975])
        alone, joined = answered.mean(0)
        result.add_row(
            name,
            f"{len(answered)}",
            f"{alone:.3f}",
            f"{joined:.3f}",
            f"{joined - alone:+.3f} ({low:+.3f} … {high:+.3f})",
        )
    console.print(result)


def _answered(
    model: ComposedModel, tokenizer: Any, surprise: Any, task: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Whether base and composition find a right choice likeliest [item, way], as BIG-bench asks and grades."""
    before, after = task.get("example_input_prefix", "\nQ: "), task.get("example_output_prefix", "\nA: ")
    cut, sizes = [], []
    for item in items:
        choices = list(item["target_scores"])
        listed = (
            "".join(f"\n  choice: {choice}" for choice in choices) if task.get("append_choices_to_input", True) else ""
        )
        asked = [
            separator(tokenizer),
            *encode(tokenizer, [f"{task.get('task_prefix', '')}{before}{item['input']}{listed}{after}"])[0],
        ]
        for ids in encode(tokenizer, choices):
            cut.append(Window(len(cut), [*asked, *ids], len(asked)))
        sizes.append(len(choices))
    nats = np.stack(window_losses(surprise, model, cut, len(cut)), -1)[:, [list(model.experts).index("base"), -1]]
    pieces = np.split(nats, np.cumsum(sizes)[:-1])
    best = [
        [list(item["target_scores"].values())[at] for at in piece.argmin(0)]
        for item, piece in zip(items, pieces, strict=True)
    ]
    return np.array(best, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "memory", "accuracy"))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--head", choices=("shared", "own"), default="shared")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--items", type=int, default=50)
    options = parser.parse_args()
    {"time": time, "memory": memory, "accuracy": accuracy}[options.what](options.base, Console(), options)


if __name__ == "__main__":
    main()
