"""What speculative decoding inside a composition costs, beside one of its experts alone and beside all at every token.

    python benchmarks/speculative.py ru=runs/demo/ru zh=runs/demo/zh --data runs/demo/data-ru --data runs/demo/data-zh

Every way in turn in one process, from the first tokens of held-out pages of each language; ms a token that was written,
reading the prompt among them, by the median of rounds, each the mean over the pages; the share of the leader's tokens
that were kept, and how many it drafted at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from treering.composition import compose, load_model, speculative
from treering.composition.speculation import Pace
from treering.evaluation import held_out_texts
from treering.tokenizer import encode, load, separator

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "T 0.8, top-p 0.95": {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
}
LED = {"led": None, "led, half the weight": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--data", action="append", required=True, help="prepared corpus; again for another")
    parser.add_argument("--rules", nargs="+", default=["evidence:switch=0.01", "evidence:switch=0.01,together=0.01"])
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--read", type=int, default=64, help="tokens of each page that are read")
    parser.add_argument("--tokens", type=int, default=100, help="tokens that are written after each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    places = dict(expert.split("=", 1) for expert in asked.experts)
    tokenizer = load(next(iter(places.values())))
    experts = {name: load_model(place) for name, place in places.items()}
    joined = {rule: compose(experts, rule) for rule in asked.rules}
    kept: list[tuple[int, int]] = []
    learn = Pace.learn

    def noted(pace: Pace, agreed: int, drafted: int) -> None:
        kept.append((agreed, drafted))
        learn(pace, agreed, drafted)

    Pace.learn = noted  # type: ignore[method-assign]

    def milliseconds(model: Any, prompts: list[list[int]], **options: Any) -> float:
        begun, written = time.perf_counter(), 0
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            ids = torch.tensor([prompt])
            asking = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "max_new_tokens": asked.tokens}
            written += model.generate(ids, **asking, **options).shape[1] - len(prompt)
        return 1000 * (time.perf_counter() - begun) / written

    table = Table("from", "way", "of", "ms/token", "of one expert", "kept", "drafted at once", box=None)
    for language, pages in held_out_texts(asked.data, "validation").items():
        whole = ([separator(tokenizer), *ids] for ids in encode(tokenizer, pages))
        prompts = [ids[: asked.read] for ids in whole if len(ids) >= asked.read][: asked.pages]
        for way, options in WAYS.items():
            taken, drafts = defaultdict(list), defaultdict(list)
            for _ in range(asked.rounds):
                for name, expert in experts.items():
                    taken[f"{name} alone"].append(milliseconds(expert, prompts, **options))
                for rule, model in joined.items():
                    taken[rule].append(milliseconds(model, prompts, **options))
                    for how, weight in LED.items():
                        kept.clear()
                        led, own = f"{rule}, {how}", options | {"assistant_ensemble_weight": weight}
                        taken[led].append(milliseconds(model, prompts, **own, custom_generate=speculative))
                        drafts[led] += kept
            one = statistics.median(own for name in experts for own in taken[f"{name} alone"])
            for of, times in taken.items():
                middle, counts = statistics.median(times), drafts.get(of)
                agreed, drafted = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
                said = (f"{agreed / drafted:.0%}", f"{drafted / len(counts):.1f}") if counts else ("", "")
                table.add_row(language, way, of, f"{middle:.2f}", f"{middle / one:.2f}", *said)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
