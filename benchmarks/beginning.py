"""A common beginning: members that go on from one model of public text, beside members from nothing and a pooled model.

    python benchmarks/beginning.py SUBSTRATE -o OUT --kinds ru en --tokens 500_000 --shares 0.33 0.67 --seeds 0 1

Every kind's pages are dealt to its owners and to the public, as many to each, none twice. Three ways to spend the same
compute, `tokens` for each of the members: every owner trains on his own pages and the public's, from nothing; one
model reads the public's pages of all kinds for a share of all tokens, and every owner goes on from it with his own for
the rest (the seed phase of Branch-Train-Merge, arXiv 2208.03306); one model reads all pages. The common model keeps its
rate to the end, and who goes on begins at that rate and lets it fall; so does the pooled model, after two thirds. With
``--falling``, each is a run of its own, whose rate rises and falls. Rates by the same search, with the first seed, on
pages set apart; held-out pages are read at the end. Run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from treering import substrate as substrates
from treering.composition import compose, load_model
from treering.composition.averaging import Part, mean
from treering.corpus import Source, prepare
from treering.evaluation.bits import DocumentLosses, document_losses, paired_change
from treering.evaluation.forgetting import composition_losses
from treering.evaluation.owned_texts import Apart, Cell, OwnedTexts
from treering.evaluation.owners import owner_of
from treering.evaluation.search import best_rate
from treering.tokenizer import load as load_tokenizer
from treering.training import Backbone, ExpertRecipe, Training, train_expert

PUBLIC = 1
RULES = ("evidence:switch=0.01", "evidence:switch=0.01,together=0.01", "top_k:switch=0.01")
STEADY: dict[str, Any] = {"schedule": "constant", "keep": "last"}
GOING_ON: dict[str, Any] = {"warmup": 0.05}
POOLED = "pooled"
CONSOLE = Console(width=160)


class Ways:
    """The runs of all three ways, made when they are asked for and kept in an output."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, options.output
        self.owners = tuple(range(2, options.owners + 2))
        self.dealt = Cell(options.owners + 1, 1.0)
        self.tokenizer, substrate = load_tokenizer(options.substrate), substrates.load(options.substrate)
        self.backbone = Backbone(d_model=substrate.matrix.shape[1], heads=4, layers=options.layers)
        self.context = self.backbone.shape().context
        kinds = {kind: Source(path=f"embedded:{kind}", name=kind) for kind in options.kinds}
        self.texts = OwnedTexts(
            kinds, {}, Apart(0.05, 0.03, options.documents), self.tokenizer, self.context, self.output
        )
        self.whole, self.seed = options.tokens * len(kinds) * len(self.owners), options.seeds[0]

    def with_public(self, kind: str, owner: int) -> Path:
        """A corpus of an owner's pages and the public's, with all that the kind holds out."""
        place, dealt = self.output / "corpora" / f"own-{kind}-{owner}", owner_of(self.texts.sizes, *self.dealt)
        if not place.exists():
            own = [one for one in self.texts.train[kind] if dealt[one.id] + 1 in (PUBLIC, owner)]
            own += [one for one in self.texts.documents[kind] if self.texts.apart.split(one) != "train"]
            lines = self.output / "texts" / f"own-{kind}-{owner}.jsonl"
            lines.parent.mkdir(parents=True, exist_ok=True)
            lines.write_text("".join(json.dumps({"id": one.id, "text": one.text}) + "\n" for one in own))
            place.parent.mkdir(parents=True, exist_ok=True)
            source, apart = Source(path=f"{lines}", name=kind), {"validation": 0.05, "calibration": 0.03}
            prepare([source], self.tokenizer, place, block_size=self.context, **apart)
        return place

    def place(self, name: str, rate: float) -> Path:
        return self.output / "runs" / f"{name}-{rate:g}-{self.seed}"

    def trained(
        self,
        name: str,
        corpus: Path,
        tokens: int,
        rate: float,
        start: Callable[[], Path] | None = None,
        **how: Any,
    ) -> PreTrainedModel:
        place = self.place(name, rate)
        if not place.exists():
            recipe = ExpertRecipe(
                substrate=f"{self.options.substrate}",
                data=f"{corpus}",
                output=f"{place}",
                start=start and f"{start()}",
                backbone=self.backbone,
                training=Training(
                    tokens=tokens,
                    learning_rate=rate,
                    weight_decay=self.options.decay,
                    evaluations=2,
                    seed=self.seed,
                    **how,
                ),
            )
            train_expert(recipe, CONSOLE)
        return load_model(place)

    def searched(self, what: str, make: Callable[[float], Sequence[tuple[PreTrainedModel, str]]]) -> float:
        """The rate with which models reach the fewest bits of their kinds' pages set apart."""

        def reached(rate: float) -> float:
            return statistics.mean(
                document_losses(model, self.tokenizer, self.texts.calibration(kind)).bits_per_byte
                for model, kind in make(rate)
            )

        return best_rate(what, self.options.rates, reached, CONSOLE)

    # -------------------------------------------------------------------------------------- the three ways

    def member(self, kind: str, owner: int, rate: float) -> PreTrainedModel:
        """From nothing, on an owner's pages and the public's."""
        return self.trained(f"own-{kind}-{owner}", self.with_public(kind, owner), self.options.tokens, rate)

    def common(self, share: float, rate: float) -> PreTrainedModel:
        """One model on the public's pages of all kinds, for a share of all tokens."""
        corpus = self.texts.together("public", dict.fromkeys(self.options.kinds, (self.dealt, PUBLIC)))
        how = {} if self.options.falling else STEADY
        return self.trained(self.called("public", share), corpus, round(self.whole * share), rate, **how)

    def branched(self, share: float, kind: str, owner: int, rate: float) -> PreTrainedModel:
        """Gone on from the common model, on an owner's pages."""
        tokens = self.options.tokens - round(self.options.tokens * share)
        corpus = self.with_public(kind, owner) if self.options.revisit else self.texts.corpus(kind, self.dealt, owner)
        name, how = f"{self.called('branched', share)}-{kind}-{owner}", {} if self.options.falling else GOING_ON
        return self.trained(name, corpus, tokens, rate, lambda: self.begun(share, rate), **how)

    def begun(self, share: float, rate: float) -> Path:
        """Where the common model is, to go on from; a rate that stays is that of who goes on."""
        rate = self.common_rate(share) if self.options.falling else rate
        self.common(share, rate)
        return self.place(self.called("public", share), rate)

    def called(self, what: str, share: float) -> str:
        return f"{what}-{share:g}" + "-steady" * (not self.options.falling)

    def pooled(self, rate: float) -> PreTrainedModel:
        """One model on all pages, at rates as those of who has a common beginning for two thirds."""
        corpus, first = self.texts.pooled(), round(self.whole * 0.667)
        if self.options.falling:
            return self.trained("pooled", corpus, self.whole, rate)

        def begun() -> Path:
            self.trained("pooled-begun", corpus, first, rate, **STEADY)
            return self.place("pooled-begun", rate)

        return self.trained("pooled-steady", corpus, self.whole - first, rate, begun, **GOING_ON)

    # ---------------------------------------------------------------------------- the rates, by the first seed

    @cache  # noqa: B019
    def own_rate(self) -> float:
        kinds = self.options.kinds
        return self.searched("own", lambda rate: [(self.member(kind, self.owners[0], rate), kind) for kind in kinds])

    @cache  # noqa: B019
    def common_rate(self, share: float) -> float:
        if not self.options.falling:
            return self.branched_rate(share)
        kinds = self.options.kinds
        return self.searched(f"common {share:g}", lambda rate: [(self.common(share, rate), kind) for kind in kinds])

    @cache  # noqa: B019
    def branched_rate(self, share: float) -> float:
        def made(rate: float) -> list[tuple[PreTrainedModel, str]]:
            return [(self.branched(share, kind, self.owners[0], rate), kind) for kind in self.options.kinds]

        return self.searched(f"branched {share:g}", made)

    @cache  # noqa: B019
    def pooled_rate(self) -> float:
        return self.searched("pooled", lambda rate: [(self.pooled(rate), kind) for kind in self.options.kinds])

    # ---------------------------------------------------------------------------- what is reached on held-out pages

    def losses(self, model: PreTrainedModel) -> dict[str, DocumentLosses]:
        """Of one model, the losses on every kind."""
        return {kind: document_losses(model, self.tokenizer, found) for kind, found in self.texts.held_out.items()}

    def joined(self, name: str, make: Callable[[str, int], PreTrainedModel]) -> dict[str, dict[str, DocumentLosses]]:
        """By owner and rule, and by kind, the losses of all owners' members and of the rules that join them."""
        model = compose({f"{kind}-{own}": make(kind, own) for kind in self.options.kinds for own in self.owners})
        found = {
            kind: composition_losses(model, self.tokenizer, texts, RULES) for kind, texts in self.texts.held_out.items()
        }
        owners = {
            f"{name}, owner {own}": {kind: found[kind][f"{kind}-{own}"] for kind in self.options.kinds}
            for own in self.owners
        }
        return owners | {f"{name}, {rule}": {kind: found[kind][rule] for kind in self.options.kinds} for rule in RULES}

    def averaged(self, name: str, make: Callable[[str, int], PreTrainedModel]) -> dict[str, dict[str, DocumentLosses]]:
        """Losses where a kind's owners are one model, the mean of theirs, and of rules that join these, by kind."""
        kinds = self.options.kinds
        means = compose({kind: mean(Part(f"{own}", make(kind, own), 1.0) for own in self.owners) for kind in kinds})
        rules = ("evidence:switch=0.01", "top_k:switch=0.01")
        found = {
            kind: composition_losses(means, self.tokenizer, texts, rules) for kind, texts in self.texts.held_out.items()
        }
        alone = {f"{name}, mean of the owners": {kind: found[kind][kind] for kind in kinds}}
        return alone | {f"{name}, means by {rule}": {kind: found[kind][rule] for kind in kinds} for rule in rules}

    def rows(self, seed: int) -> dict[str, dict[str, DocumentLosses]]:
        """By way and kind, what models of one seed reach; all are made before any is measured."""
        shares, rates = self.options.shares, (self.own_rate(), self.pooled_rate())
        branched = {share: (self.common_rate(share), self.branched_rate(share)) for share in shares}
        self.seed = seed
        found = {POOLED: self.losses(self.pooled(rates[1]))}
        found |= self.joined("from nothing", lambda kind, own: self.member(kind, own, rates[0]))
        for share, (common, own_rate) in branched.items():
            found[f"common for {share:g}"] = self.losses(self.common(share, common))
            made = partial(self.branched, share, rate=own_rate)
            found |= self.joined(f"from common for {share:g}", made)
            if len(self.owners) > 1:
                found |= self.averaged(f"from common for {share:g}", made)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("substrate", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--owners", type=int, default=2, help="of each kind")
    parser.add_argument("--revisit", action="store_true", help="who goes on reads the public pages of its kind, too")
    parser.add_argument("--decay", type=float, default=0.1, help="of weights, in every run of an output")
    parser.add_argument("--falling", action="store_true", help="the common model is a run of its own, to its end")
    parser.add_argument("--layers", type=int, help="of every model; those of the preset if not given")
    parser.add_argument("--kinds", nargs="+", default=["ru", "zh", "en"])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each member")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 6e-3, 1.2e-2])
    parser.add_argument("--documents", type=int, help="held-out pages of each kind; all if not given")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 3], help="of the tokens, for the common model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    ways = Ways(parser.parse_args())
    kinds = ways.options.kinds
    for seed in ways.options.seeds:
        table = Table(f"seed {seed}", *(f"{kind}, {len(ways.texts.held_out[kind])} pages" for kind in kinds), box=None)
        rows = ways.rows(seed)
        for name, by_kind in rows.items():
            cells = []
            for kind in kinds:
                change = paired_change(by_kind[kind], rows[POOLED][kind])
                told = f"{change.change:+.1%} ({change.low:+.1%} … {change.high:+.1%})" if name != POOLED else ""
                cells.append(f"{by_kind[kind].bits_per_byte:.3f} {told}")
            table.add_row(name, *cells)
        CONSOLE.print(table)


if __name__ == "__main__":
    main()
