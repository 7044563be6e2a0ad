"""What a composition is worth and what it costs, on the demo's experts and corpora.

    python benchmarks/composition.py train  --demo runs/demo    # models to compare with, trained once: 15 minutes
    python benchmarks/composition.py table  --demo runs/demo    # bits per byte: experts and rules; --experts ru zh en
    python benchmarks/composition.py pooled --demo runs/demo    # the distance to models trained on pooled data
    python benchmarks/composition.py start  --demo runs/demo    # where in a page a rule loses against its expert
    python benchmarks/composition.py prompts --demo runs/demo   # how sure the default rule is after a few characters
    python benchmarks/composition.py cached --demo runs/demo    # what a text's own repetitions are worth to each
    python benchmarks/composition.py decode --demo runs/demo    # time of cached decoding
    python benchmarks/composition.py memory                     # peak memory, where a substrate is a large part
    python benchmarks/composition.py bound                      # what rounding takes evidence above its bound

All but the last two need a finished ``treering demo``. ``train`` makes, beside it in DEMO-yardsticks: an English-only
expert as a third; one model of an expert's size and one of the composition's total size, each trained on the pooled
corpora for as many tokens as both experts together. ``table`` fits the rules that can be, on the pages set apart (at
most 1% of the experts' tokens), and measures everything on the held-out pages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from memory import peak_of_decoding
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import Preset, dock, gpt_neox
from treering.composition import compose, compose_directories, fit, load_model, rule
from treering.corpus import Source, prepare, training_texts, windows
from treering.evaluation import (
    DocumentLosses,
    as_change_table,
    as_table,
    code_switched,
    composition_losses,
    document_losses,
    held_out_texts,
    measure_forgetting,
    paired_change,
    require_composition,
)
from treering.tokenizer import encode, load, separator
from treering.training import Backbone, ExpertRecipe, Training, train_expert
from treering.training.loss import log_likelihood

LANGUAGES = ("ru", "zh", "en")
TOKENS = 1_000_000  # of one expert of the demo
YARDSTICKS = {"pooled-small": (LANGUAGES, 2 * TOKENS, 4), "pooled-large": (LANGUAGES, 2 * TOKENS, 10)}
MODELS = {"en": (("en",), TOKENS, 4), **YARDSTICKS}
"""By name: languages, tokens, layers (10 make the parameters of the composition: 6.0 M beside 5.9 M)."""

RULES = (
    "mean",
    "probability",
    "evidence",
    "evidence:switch=0.001",
    "evidence:switch=0.01",
    "evidence:switch=0.1",
    "evidence:switch=0.01,together=0.01",
    "top_k",
    "top_k:switch=0.01",
)
DECODED = (
    "mean",
    "evidence",
    "evidence:switch=0.01",
    "evidence:switch=0.01,together=0.01",
    "evidence:switch=0.01,cache=0.1",
    "top_k",
)
FITTED = ("weighted", "gate:switch=0.01", "adapter", "weighted:pool=log", "gate:switch=0.01,pool=log")


def train(demo: Path, console: Console) -> None:
    place, tokenizer = yardsticks(demo), load(demo / "tokenizer")
    for name, (languages, tokens, layers) in MODELS.items():
        data = place / f"data-{'-'.join(languages)}"
        if not data.exists():
            sources = [Source(path=f"embedded:{language}", name=language) for language in languages]
            prepare(sources, tokenizer, data, block_size=256, validation=0.05, calibration=0.01)
        if not (place / name).exists():
            console.print(f"[bold]{name}[/]")
            recipe = ExpertRecipe(
                substrate=os.fspath(demo / "substrate"),
                data=os.fspath(data),
                output=os.fspath(place / name),
                backbone=Backbone(preset="small", layers=layers),
                training=Training(tokens=tokens, evaluations=4),
            )
            train_expert(recipe, console)


def table(demo: Path, console: Console, experts: list[str]) -> None:
    place, tokenizer = yardsticks(demo), load(demo / "tokenizer")
    corpora = [demo / "data-ru", demo / "data-zh"]
    texts, calibration = held_out(demo), held_out_texts(corpora, "calibration")
    switched = {"switched": code_switched(map(str, corpora))}
    joined = place / "-".join(experts)
    if not joined.exists():
        compose_directories({name: place / name if name in MODELS else demo / name for name in experts}, joined)
    measured = []
    for spec in FITTED if len(experts) == 2 else FITTED[:2]:
        model, begun = require_composition(load_model(joined)), time.perf_counter()
        done = fit(model, tokenizer, calibration, spec)
        console.print(
            f"{spec}: {done.tokens:,} tokens ({done.texts}), {done.before:.4f} → {done.after:.4f} nats/token, "
            f"{time.perf_counter() - begun:.0f} s; weights {[record['weight'] for record in model.config.experts]}"
        )
        measured.append(measure_forgetting(model, tokenizer, texts, [spec], extra=switched))
    model = require_composition(load_model(joined))
    measured.insert(0, measure_forgetting(model, tokenizer, texts, RULES, extra=switched))
    rows = measured[0].rows + [row for one in measured[1:] for row in one.rows if row["rule"]]
    differences = [difference for one in measured for difference in one.differences]
    console.print(as_table(rows))
    console.print(as_change_table(differences))
    (place / f"{joined.name}.json").write_text(json.dumps({"rows": rows, "differences": differences}, indent=1))


def pooled(demo: Path, console: Console) -> None:
    place, tokenizer, texts = yardsticks(demo), load(demo / "tokenizer"), held_out(demo)
    models = {"joined": load_model(demo / "composed", rule="evidence:switch=0.01")}
    models |= {name: load_model(place / name) for name in YARDSTICKS}
    losses = {
        name: {text: document_losses(model, tokenizer, found) for text, found in texts.items()}
        for name, model in models.items()
    }
    result = Table("bits per byte; joined against it", *texts, box=None)
    for name, measured in losses.items():
        cells = []
        for text, own in measured.items():
            change = paired_change(losses["joined"][text], own)
            difference = f" ({change.change:+.1%}: {change.low:+.1%} … {change.high:+.1%})" if name != "joined" else ""
            cells.append(f"{own.score().bits_per_byte:.3f}{difference}")
        result.add_row(f"{name}, {sum(p.numel() for p in models[name].parameters()):,} parameters", *cells)
    console.print(result)


@torch.no_grad()
def start(demo: Path, console: Console, first: int = 8) -> None:
    """Nats per page that a rule costs above the page's own expert: in its first tokens, and in all the others."""
    model, tokenizer = require_composition(load_model(demo / "composed")), load(demo / "tokenizer")
    with torch.enable_grad():
        fit(model, tokenizer, held_out_texts([demo / "data-ru", demo / "data-zh"], "calibration"), "gate:switch=0.01")
    rules = [rule(spec) for spec in ("evidence", "evidence:switch=0.01", "gate:switch=0.01")]
    result = Table(
        "rule", "pages", f"nats a page, first {first} tokens", "all the others", "of the others' bits", box=None
    )
    for own, language in enumerate(("ru", "zh")):
        pages = held_out(demo)[language]
        cut = windows(encode(tokenizer, pages), separator(tokenizer), model.config.max_position_embeddings)
        lost, spent = torch.zeros(len(rules), len(pages), 2), torch.zeros(len(pages), 2)
        for window in cut:
            ids = torch.tensor([window.tokens])
            logits, reading = model.read(ids[:, :-1], hidden=True)
            begun = first if window.scored_from == 1 else 0
            parts = (
                slice(window.scored_from - 1, window.scored_from - 1 + begun),
                slice(window.scored_from - 1 + begun, None),
            )
            alone = log_likelihood(logits[own, 0], ids[0, 1:])
            for which, part in enumerate(parts):
                spent[window.document, which] -= alone[part].sum()
                for r, joining in enumerate(rules):
                    joined = log_likelihood(joining(logits, reading).logits[0], ids[0, 1:])
                    lost[r, window.document, which] += (alone - joined)[part].sum()
        for r, joining in enumerate(rules):
            change = paired_change(
                *(
                    DocumentLosses(nats.double().numpy(), np.ones(len(pages), int))
                    for nats in (spent[:, 1] + lost[r, :, 1], spent[:, 1])
                )
            )
            result.add_row(
                f"{joining}, {language}",
                f"{len(pages)}",
                *(f"{nats:.3f}" for nats in lost[r].mean(0)),
                f"{change.change:+.3%} ({change.low:+.3%} … {change.high:+.3%})",
            )
    console.print(result)


def prompts(demo: Path, console: Console, pages: int = 100) -> None:
    """Of pages' first characters, how often their own expert has the greater weight, and what weight it has."""
    model, tokenizer = require_composition(load_model(demo / "composed")), load(demo / "tokenizer")
    result = Table("characters", box=None)
    begun = {"read after the separator, as treering does": [separator(tokenizer)], "read without it": []}
    for language in ("ru", "zh"):
        for how in begun:
            result.add_column(f"{language}, {how}", justify="right")
    for length in (1, 2, 4, 8, 16):
        cells = []
        for own, language in enumerate(("ru", "zh")):
            texts = [text[:length] for text in held_out(demo)[language][:pages]]
            for before in begun.values():
                weights = []
                for ids in encode(tokenizer, texts):
                    logits, reading = model.read(torch.tensor([[*before, *ids]]))
                    weighed = rule("evidence:switch=0.01")(logits, reading).evidence
                    assert weighed is not None
                    weights.append(float(weighed[:, 0, -1].detach().softmax(0)[own]))
                right = sum(weight > 0.5 for weight in weights) / len(weights)
                cells.append(f"{right:.0%}, weight {statistics.mean(weights):.3f}")
        result.add_row(f"{length}", *cells)
    console.print(result)


SHARES = (0.02, 0.05, 0.1, 0.2, 0.3)


def cached(demo: Path, console: Console) -> None:
    """Every expert, the pooled models and the composition with and without a cache, whose share each chooses itself.

    The share is chosen on the pages set apart, by the mean over the languages; the held-out pages are read once.
    """
    place, tokenizer = yardsticks(demo), load(demo / "tokenizer")
    apart = held_out(demo, "calibration")
    models = {name: (compose({name: load_model(demo / name)}), "evidence") for name in ("ru", "zh")}
    models |= {name: (compose({name: load_model(place / name)}), "evidence") for name in YARDSTICKS}
    models["joined"] = require_composition(load_model(demo / "composed")), "evidence:switch=0.01"
    losses: dict[tuple[str, str], dict[str, DocumentLosses]] = {}
    for name, (model, plain) in models.items():
        ways = {share: f"{plain}{',' if ':' in plain else ':'}cache={share}" for share in SHARES}
        found = [composition_losses(model, tokenizer, texts, list(ways.values())) for texts in apart.values()]
        bits = {share: statistics.mean(own[way].score().bits_per_byte for own in found) for share, way in ways.items()}
        best = min(bits, key=bits.__getitem__)
        console.print(f"{name}: {', '.join(f'{share:g}: {value:.4f}' for share, value in bits.items())}")
        for text, pages in held_out(demo).items():
            measured = composition_losses(model, tokenizer, pages, [plain, ways[best]])
            for label, spec in {name: plain, f"{name}, cache={best:g}": ways[best]}.items():
                losses.setdefault((label, spec), {})[text] = measured[spec]
    better = min(("ru", "zh"), key=lambda name: losses[name, "evidence"]["en"].score().bits_per_byte)
    owners = {"ru": "ru", "zh": "zh", "en": better}
    result = Table("bits per byte; against the text's own expert without a cache", *owners, box=None)
    for (label, _), own in losses.items():
        cells = []
        for text, owner in owners.items():
            change = paired_change(own[text], losses[owner, "evidence"][text])
            told = f" ({change.change:+.1%}: {change.low:+.1%} … {change.high:+.1%})" if label != owner else ""
            cells.append(f"{own[text].score().bits_per_byte:.3f}{told}")
        result.add_row(label, *cells)
    console.print(result)


def held_out(demo: Path, split: Literal["validation", "calibration"] = "validation") -> dict[str, list[str]]:
    found = held_out_texts([demo / "data-ru", demo / "data-zh"], split)
    return {language: found[language] for language in LANGUAGES}


@torch.no_grad()
def decode(demo: Path, console: Console, tokens: int = 150, rounds: int = 5) -> None:
    """Median time of greedy decoding after a Russian prompt; every model in turn, round by round, in one process."""
    tokenizer = load(demo / "tokenizer")
    page = max(held_out_texts([demo / "data-ru"])["ru"], key=len)
    prompt = torch.tensor([[tokenizer.eos_token_id, *tokenizer(page)["input_ids"]][:64]])
    joined = require_composition(load_model(demo / "composed"))

    def ways() -> dict[str, Callable[[], object]]:
        def of(model: torch.nn.Module, rule: str | None = None) -> Callable[[], object]:
            def run() -> object:
                if rule:
                    model.use(rule)
                return model.generate(
                    prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
                )

            return run

        experts = {name: of(load_model(demo / name)) for name in ("ru", "zh")}
        return experts | {rule: of(joined, rule) for rule in DECODED}

    runs = ways()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - begun)
    sums = [ru + zh for ru, zh in zip(times["ru"], times["zh"], strict=True)]
    result = Table("decoding", "ms/token", "of both experts' sum", "of the Russian expert", box=None)
    for name, own in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own, reference, strict=True)) for reference in (sums, times["ru"])
        ]
        result.add_row(name, f"{1000 * statistics.median(own) / tokens:.2f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(result)


def memory(console: Console, experts: int = 4) -> None:
    """Peak memory of a process that decodes: with one expert, with all of them joined, with all of them apart."""
    texts = {language: training_texts(f"embedded:{language}", 0.05) for language in LANGUAGES}
    tokenizer = tokenizers.train(texts, vocab_size=65_536)
    substrate = substrates.build(tokenizer, 256, kind="random")
    names = [f"expert{n}" for n in range(experts)]
    result = Table("decoding with", "MiB at most, above no model", "parameters, MiB", box=None)
    with (
        tempfile.TemporaryDirectory() as scratch,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes,
    ):
        place = Path(scratch)
        for name in names:
            dock(gpt_neox(Preset(1, 256, 8, 65_536, context=256)), substrate, tokenizer).save_pretrained(place / name)
            tokenizers.save(tokenizer, place / name)
        compose_directories({name: place / name for name in names}, place / "joined")
        nothing, _ = processes.apply(peak_of_decoding, [[], 64])
        ways = {"one expert": names[:1], f"{experts} experts joined": ["joined"], f"{experts} experts apart": names}
        for what, loaded in ways.items():
            peak, stored = processes.apply(peak_of_decoding, [[place / name for name in loaded], 64])
            result.add_row(what, f"{peak - nothing:.0f}", f"{stored:.0f}")
    console.print(f"substrate and each head: {substrate.matrix.nbytes / 2**20:.0f} MiB")
    console.print(result)


def bound(console: Console, experts: int = 2, vocabulary: int = 512) -> None:
    """How far long random texts cost a mixture more than its bound, with untrained experts of several confidences.

    Losses are sums in float64 over the logits that models return: of each expert as plain transformers runs it, and of
    the composition. ``exact`` is the mixture of the plain experts, token by token in float64.
    """
    switch = 0.001
    result = Table(
        "rule", "experts in", "tokens", "largest excess over the bound, nats", "largest |loss − exact|", box=None
    )
    for dtype, length in itertools.product((torch.float32, torch.bfloat16), (2_048, 32_768)):
        found: dict[str, list[tuple[float, float]]] = {"evidence": [], f"evidence:switch={switch}": []}
        for seed, spread in enumerate((0.02, 0.02, 0.05, 0.1, 0.3)):
            config = gpt_neox(Preset(1, 64, 2, vocabulary, context=length))
            config.initializer_range = spread
            models = {}
            for number in range(experts):
                torch.manual_seed(experts * seed + number)
                models[f"e{number}"] = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))
            said = torch.stack([_said(model, ids) for model in models.values()])
            for spec, measured in found.items():
                loss = -_said(compose(models, spec, across_substrates=True), ids).sum().item()
                own, rate = -said.sum(1).max().item(), switch if "switch" in spec else 0.0
                most = own + math.log(experts) - (length - 2) * math.log1p(-rate)
                measured.append((loss - most, abs(loss - _mixture(said, rate))))
        for spec, measured in found.items():
            excess, off = (max(values) for values in zip(*measured, strict=True))
            result.add_row(spec, str(dtype).removeprefix("torch."), f"{length:,}", f"{excess:.1e}", f"{off:.1e}")
    console.print(result)


def _said(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in float64 that a model's logits give to every token but the first."""
    parts = zip(model(ids, use_cache=False).logits[0, :-1].split(1024), ids[0, 1:].split(1024), strict=True)
    return torch.cat([logits.double().log_softmax(-1).gather(1, own[:, None])[:, 0] for logits, own in parts])


def _mixture(said: torch.Tensor, switch: float) -> float:
    """Nats of a text under the mixture whose weights are the posterior, from what experts said [expert, token]."""
    weights, nats = np.full(len(said), 1 / len(said)), 0.0
    for token in said.exp().T.numpy():
        nats -= math.log(weights @ token)
        weights = (1 - switch) * weights * token / (weights @ token) + switch / len(said)
    return nats


def yardsticks(demo: Path) -> Path:
    return demo.with_name(demo.name + "-yardsticks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_demo = {"train": train, "pooled": pooled, "start": start, "prompts": prompts, "cached": cached, "decode": decode}
    alone = {"memory": memory, "bound": bound}
    parser.add_argument("what", choices=(*on_demo, *alone, "table"))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--experts", nargs="+", default=["ru", "zh"], help="of the table; en is the third")
    options = parser.parse_args()
    console = Console(width=max(240, shutil.get_terminal_size().columns), highlight=False)
    if options.what == "table":
        table(options.demo, console, options.experts)
    elif options.what in alone:
        alone[options.what](console)
    else:
        on_demo[options.what](options.demo, console)


if __name__ == "__main__":
    main()
