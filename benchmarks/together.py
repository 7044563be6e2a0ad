"""Ways in which experts that know the same can speak together, on pages set apart: what ``together`` was chosen from.

    python benchmarks/together.py RU1 RU2 ZH1 ZH2 EN1 EN2 --data DATA-RU DATA-ZH DATA-EN --documents 30

Experts are directories on one substrate, the corpora were prepared with pages set apart (``--calibration``), which
alone are read. Nats of all pages of a text by every way, and against the expert that is best on it. A way is written
down here anew, token by token in float64 where it learns; the rules' own code is used nowhere.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from treering.composition import load_model
from treering.corpus import windows
from treering.evaluation import held_out_texts
from treering.tokenizer import encode, load, separator

RATES, SHARPENED, SHARES = (0.03, 0.06, 0.12), (0.0, 0.15, 0.3), (0.003, 0.01)


def posterior(said: Tensor, prior: Tensor, switch: float) -> Tensor:
    """Log-weights before each token [source, token] from what the sources gave the tokens [source, token]."""
    start = prior.log().double()
    before, found = start, []
    for token in said.double().unbind(1):
        found.append(before)
        before = (before + token).log_softmax(0)
        if switch:
            before = torch.logaddexp(before + math.log1p(-switch), start + math.log(switch))
    return torch.stack(found, 1)


def mixture(said: Tensor, switch: float) -> Tensor:
    """Log-probabilities [token] by fixed share among sources [source, token] that begin alike."""
    return (posterior(said, torch.full((len(said),), 1 / len(said)), switch) + said.double()).logsumexp(0)


def product(logs: Tensor, tokens: Tensor, exponents: Tensor) -> Tensor:
    """Log-probabilities [token] of ``Π p_i^{e_i}``, normalised, from log-probabilities [expert, token, vocab]."""
    joint = (logs.double() * exponents[..., None]).sum(0)
    return joint.gather(1, tokens[:, None])[:, 0] - joint.logsumexp(1)


def learnt(logs: Tensor, tokens: Tensor, rate: float) -> Tensor:
    """The product whose exponents learn while it reads (exponentiated gradient, from 1/N): PAQ's mixing."""
    exponents = torch.full((len(logs),), 1 / len(logs), dtype=torch.float64)
    found = []
    for said, token in zip(logs.double().unbind(1), tokens.tolist(), strict=True):
        joint = exponents @ said
        level = joint.logsumexp(0)
        found.append(joint[token] - level)
        gradient = said @ (joint - level).exp() - said[:, token]
        exponents = exponents * (-rate * gradient).clamp(-1, 1).exp()
    return torch.stack(found)


def ways(logs: Tensor, tokens: Tensor, own: list[int]) -> Iterator[tuple[str, Tensor]]:
    """By name, the log-probabilities [token] of each way; ``own`` are the experts of the text's kind."""
    said = logs.gather(2, tokens[None, :, None].expand(len(logs), -1, 1))[..., 0].double()
    equal = torch.full((len(logs),), 1 / len(logs))
    for switch in (0.0, 0.01, 0.1):
        yield f"evidence:switch={switch:g}", mixture(said, switch)
    evidence = mixture(said, 0.01)
    for share in SHARES:
        for rate in RATES:
            slow = posterior(rate * said, equal, share)
            several = -(2 * slow).logsumexp(0)
            for sharpen in SHARPENED:
                spoken = product(logs, tokens, (slow + sharpen * several).exp())
                both = mixture(torch.stack([evidence, spoken]), share)
                yield f"together: share {share:g}, rate {rate:g}, sharpen {sharpen:g}", both
    alike = torch.full((len(own), len(tokens)), 1 / len(own))
    yield "kind told: mean of probabilities", (said[own] - math.log(len(own))).logsumexp(0)
    for sharpen in SHARPENED:
        yield f"kind told: product, sharpen {sharpen:g}", product(logs[own], tokens, alike * len(own) ** sharpen)
    for rate in (0.003, 0.01, 0.03):
        yield f"kind told: product whose exponents learn at {rate:g}", learnt(logs[own], tokens, rate)
    yield "all: product whose exponents learn at 0.01", learnt(logs, tokens, 0.01)
    for number, alone in enumerate(said):
        yield f"expert {number}", alone
        if number in own:
            for exponent in (0.95, 1.05, 1.1):
                sharpened = product(logs[number : number + 1], tokens, alike[:1] * len(own) * exponent)
                yield f"expert {own.index(number) + 1} of the kind, exponent {exponent:g}", sharpened


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experts", nargs="+", type=Path, help="in the order of the corpora, as many for each")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=30)
    options = parser.parse_args()
    models, tokenizer = [load_model(place) for place in options.experts], load(options.experts[0])
    of_a_kind = len(models) // len(options.data)
    table, totals = Table("nats; against the best expert", box=None), list[dict[str, float]]()
    for number, data in enumerate(options.data):
        own = list(range(number * of_a_kind, (number + 1) * of_a_kind))
        texts = next(iter(held_out_texts([data], "calibration").values()))[: options.documents]
        totals.append({})
        for window in windows(encode(tokenizer, texts), separator(tokenizer), models[0].config.max_position_embeddings):
            ids = torch.tensor([window.tokens])
            logs = torch.cat([model(ids[:, :-1]).logits.log_softmax(-1) for model in models])
            for name, said in ways(logs, ids[0, 1:], own):
                nats = -said[window.scored_from - 1 :].sum().item()
                totals[-1][name] = totals[-1].get(name, 0.0) + nats
        table.add_column(f"{data.name}, {len(texts)} pages", justify="right")
    for name in totals[0]:
        bests = [min(value for own, value in total.items() if own.startswith("expert")) for total in totals]
        cells = [
            f"{total[name]:,.0f} ({total[name] / best - 1:+.2%})" for total, best in zip(totals, bests, strict=True)
        ]
        table.add_row(name, *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
