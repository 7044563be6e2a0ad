"""Members that are worse alone and better together? Trained past their optimum, regularised, or taught by another.

    python benchmarks/members.py SUBSTRATE -o OUT --kind ru --owners 4 --epochs 5 10 20 --taught 0.5 --pooled

Two of several owners of one kind of text, who share topics and no page, train a member each: for more or fewer passes,
with more or less weight decay and dropout (Kim et al. 2509.14786 train an ensemble's members past what is best for one
alone), or the second is taught by the first, too: on its own pages it learns from the page and from what the first
would say (distillation; a model is shared, no text), and then the first begins anew, taught by the second. Beside them
one model that has both owners' pages. Rates by the same search for every row, on pages set apart, by the first member
alone and by the two joined; held-out pages are read at the end. Run it again to go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel, set_seed

from treering import substrate as substrates
from treering.backbone import dock, gpt_neox
from treering.composition import compose, load_model
from treering.corpus import Corpus, Source, prepare
from treering.evaluation.bits import DocumentLosses, document_losses, paired_change
from treering.evaluation.forgetting import composition_losses
from treering.evaluation.owned_texts import Apart, Cell, OwnedTexts
from treering.evaluation.search import best_rate
from treering.tokenizer import load as load_tokenizer
from treering.training import Training, train
from treering.training.expert import Backbone, stand_on
from treering.training.loss import Lesson
from treering.training.run import scale_residual_outputs

RULES = ("evidence:switch=0.01", "evidence:switch=0.01,together=0.01")
TOGETHER = RULES[1]
CONSOLE = Console(width=160)


class Way(NamedTuple):
    """How members of a row are trained.

    Attributes:
        taught: the share of the teacher in the second one's loss.
        again: the first learns anew, taught by the second.
    """

    epochs: float
    decay: float = 0.1
    dropout: float = 0.0
    taught: float = 0.0
    again: bool = False

    def __str__(self) -> str:
        told = f"{self.epochs:g} passes, decay {self.decay:g}, dropout {self.dropout:g}"
        return f"{told}, taught {self.taught:g}" + " in turn" * self.again if self.taught else told


class Members:
    """The runs, made when they are asked for and kept in an output."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, options.output
        self.tokenizer, self.substrate = load_tokenizer(options.substrate), substrates.load(options.substrate)
        self.shape = stand_on(
            self.substrate, Backbone(d_model=self.substrate.matrix.shape[1], heads=4, layers=options.layers).shape()
        )
        kinds = {options.kind: Source(path=f"embedded:{options.kind}", name=options.kind)}
        apart = Apart(0.08, 0.05, options.documents)
        self.texts = OwnedTexts(kinds, {}, apart, self.tokenizer, self.shape.context, self.output)
        self.cell = Cell(options.owners, 1.0)

    def member(self, owner: int, way: Way, rate: float, seed: int) -> PreTrainedModel:
        """An owner's model, from 1, or both owners' pages', 0; taught by the other where the way says so."""
        taught = way.taught if owner == 2 or (owner == 1 and way.again) else 0.0
        alone = way._replace(taught=taught)
        name = f"{owner}-{alone.epochs:g}-{alone.decay:g}-{alone.dropout:g}-{alone.taught:g}-{rate:g}-{seed}"
        place = self.output / "runs" / name
        if not place.exists():
            set_seed(seed)
            model = dock(gpt_neox(self.shape), self.substrate, self.tokenizer)
            scale_residual_outputs(model)
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = way.dropout
            settings = Training(
                epochs=way.epochs,
                learning_rate=rate,
                weight_decay=way.decay,
                evaluations=2,
                keep="last",
                seed=seed,
            )
            corpus = Corpus.load(self.pooled() if not owner else self.texts.corpus(self.options.kind, self.cell, owner))
            teacher = (2, way) if owner == 1 else (1, way._replace(again=False))
            lesson = Lesson(self.member(*teacher, rate, seed), taught) if taught else None
            train(model, self.tokenizer, corpus, place, settings, {"name": name}, CONSOLE, lesson)
        return load_model(place)

    def pooled(self) -> Path:
        """A corpus of both owners' pages."""
        place, lines = self.output / "corpora" / "both", self.output / "texts" / "both.jsonl"
        if not place.exists():
            owned = [self.texts.corpus(self.options.kind, self.cell, owner) for owner in (1, 2)]
            read = [(self.output / "texts" / self.cell.name / f"{own.name}.jsonl").read_text() for own in owned]
            lines.write_text("".join(dict.fromkeys("".join(read).splitlines(keepends=True))))
            source, apart = Source(path=f"{lines}", name=self.options.kind), self.texts.apart
            prepare(
                [source],
                self.tokenizer,
                place,
                block_size=self.shape.context,
                validation=apart.validation,
                calibration=apart.calibration,
            )
        return place

    def losses(self, way: Way, rate: float, seed: int, texts: Sequence[str]) -> dict[str, Any]:
        """Of both members, named by their owners, and of the rules that join them."""
        members = {f"owner-{owner}": self.member(owner, way, rate, seed) for owner in (1, 2)}
        return composition_losses(compose(members), self.tokenizer, texts, RULES)

    def rate(self, way: Way, what: str) -> float:
        """With which ``what`` reaches the fewest bits of the pages set apart, by the first seed."""
        calibration, seed = self.texts.calibration(self.options.kind), self.options.seeds[0]
        return best_rate(
            f"{way}, {what}",
            self.options.rates,
            lambda rate: self.losses(way, rate, seed, calibration)[what].bits_per_byte,
            CONSOLE,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("substrate", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kind", default="ru")
    parser.add_argument("--owners", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=float, nargs="+", default=[5, 10, 20], help="with the usual decay")
    parser.add_argument("--past", type=float, nargs="+", default=[10, 20], help="passes with each decay and dropout")
    parser.add_argument("--decays", type=float, nargs="+", default=[1.0])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1])
    parser.add_argument("--taught", type=float, nargs="*", default=[], help="shares, for each way without dropout")
    parser.add_argument("--pooled", action="store_true", help="one model on both's pages, each of these ways, too")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 6e-3])
    parser.add_argument("--documents", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    members = Members(options)
    ways = [Way(epochs) for epochs in options.epochs]
    for epochs in options.past:
        ways += [Way(epochs, decay) for decay in options.decays]
        ways += [Way(epochs, dropout=dropout) for dropout in options.dropouts]
    plain = list(dict.fromkeys(way for way in ways if not way.dropout))
    for way in plain:
        ways += [way._replace(taught=share, again=again) for share in options.taught for again in (False, True)]
    chosen = {}
    for way in ways:
        for what in ("owner-2" if way.taught else "owner-1", TOGETHER):
            chosen[way, what] = members.rate(way, what)

    apart, held_out = members.texts.calibration(options.kind), members.texts.held_out[options.kind]

    def of_both(way: Way, rate: float, seed: int, texts: Sequence[str]) -> DocumentLosses:
        return document_losses(members.member(0, way, rate, seed), members.tokenizer, texts)

    def reached(way: Way, rate: float) -> float:
        return of_both(way, rate, options.seeds[0], apart).bits_per_byte

    pooled = {
        way: best_rate(f"both's pages, {way}", options.rates, partial(reached, way), CONSOLE)
        for way in (plain if options.pooled else [])
    }
    for seed in options.seeds:
        table = Table(f"seed {seed}", "rate for", "rate", "member 1", "member 2", *RULES, "gain", box=None)
        for (way, what), rate in chosen.items():
            found = members.losses(way, rate, seed, held_out)
            best = min((found["owner-1"], found["owner-2"]), key=lambda losses: losses.nats.sum())
            gain = paired_change(found[TOGETHER], best)
            bits = [f"{found[name].bits_per_byte:.3f}" for name in ("owner-1", "owner-2", *RULES)]
            told = f"{gain.change:+.1%} ({gain.low:+.1%} … {gain.high:+.1%})"
            table.add_row(str(way), "joined" if what == TOGETHER else "one", f"{rate:g}", *bits, told)
            for one, own in pooled.items():
                against = paired_change(found[TOGETHER], of_both(one, own, seed, held_out))
                told = f"{against.change:+.1%} ({against.low:+.1%} … {against.high:+.1%})"
                table.add_row(f"  against one on both's pages, {one}", "", f"{own:g}", "", "", "", "", told)
        CONSOLE.print(table)


if __name__ == "__main__":
    main()
