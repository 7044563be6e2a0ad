"""What joining costs each expert and what it gains, rule by rule, on the same documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypedDict

import numpy as np
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from treering.composition import ComposedModel, require_fitted, rule
from treering.corpus import load_held_out
from treering.errors import TreeringError
from treering.evaluation.bits import DocumentLosses, joined_surprise, losses_by, paired_change
from treering.evaluation.table import Row, row

READY = ("mean", "probability", "evidence", "evidence:switch=0.01", "top_k")
ORACLE = "oracle"
MIXTURE = "mixture"
"""The text that is all texts together."""


class Difference(TypedDict):
    """A rule's bits per byte on a text relative to an expert's (0.01: one percent more), with a 95% interval.

    ``own`` says whether the text is of the expert's own language, so that the difference is what it forgot by joining.
    """

    rule: str
    text: str
    expert: str
    own: bool
    change: float
    low: float
    high: float
    documents: int


def composition_losses(
    model: ComposedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], rules: Sequence[str]
) -> dict[str, DocumentLosses]:
    """Losses of every expert by name, of every rule, and of the oracle, from one pass of the experts over the texts.

    The oracle takes for each document the expert that turns out best on it: a yardstick, not a model.

    Raises:
        TreeringError: a rule does not exist or does not fit; an expert has the name of a rule; there is no text.
    """
    names = [name for name, _ in model.named_experts()]
    if taken := [name for name in names if name in (*rules, ORACLE)]:
        raise TreeringError(
            f"The expert {taken[0]!r} has the name of what it is compared with. Compose it under another: NAME=DIR."
        )
    before = str(model.rule)
    chosen = [model.use(spec).rule for spec in rules]
    model.use(before)
    measured = losses_by(joined_surprise(model, chosen, experts=True), model, tokenizer, texts)
    best = np.min([losses.nats for losses in measured[: len(names)]], axis=0)
    return dict(zip([*names, *rules], measured, strict=True)) | {ORACLE: DocumentLosses(best, measured[0].bytes)}


@dataclass(frozen=True)
class Forgetting:
    """Bits per byte of experts, rules and oracle on every text, and every rule against the experts."""

    rows: list[Row]
    differences: list[Difference]


def measure_forgetting(
    model: ComposedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    rules: Sequence[str] | None = None,
    own: Mapping[str, Sequence[str]] | None = None,
    extra: Mapping[str, Sequence[str]] | None = None,
) -> Forgetting:
    """Measure on ``texts``, on all of them together, and on ``extra`` texts that are nobody's own.

    Args:
        texts: documents by the text's name.
        rules: those to compare; None for all that need no fitting, what was fitted, and the model's own.
        own: by expert, the names of its own texts where the model's records do not say (see `own_texts`).

    Raises:
        TreeringError: a rule has to be fitted first; see also `composition_losses` and `own_texts`.
    """
    for spec in rules or []:
        require_fitted(model.config.fusion, rule(spec))
    chosen = list(dict.fromkeys(str(rule(spec)) for spec in rules)) if rules else ready_rules(model)
    owned = own_texts(model, texts, own or {})
    losses = {text: composition_losses(model, tokenizer, found, chosen) for text, found in texts.items()}
    if len(texts) > 1:
        losses[MIXTURE] = {
            name: all_together(measured[name] for measured in losses.values()) for name in next(iter(losses.values()))
        }
    losses |= {text: composition_losses(model, tokenizer, found, chosen) for text, found in (extra or {}).items()}
    names = next(iter(losses.values()))
    rows = [
        row(
            name if name in owned or name == ORACLE else "joined",
            text,
            name if name in chosen else None,
            measured[name].score(),
        )
        for name in names
        for text, measured in losses.items()
    ]
    return Forgetting(rows, differences(losses, chosen, owned))


def ready_rules(model: ComposedModel) -> list[str]:
    """The rules that can be compared without fitting anything first, what was fitted, and the model's own."""
    fitted = [record["rule"] for record in (model.config.fusion or {}).values() if record]
    return list(dict.fromkeys([*READY, *fitted, str(model.rule)]))


def all_together(losses: Iterable[DocumentLosses]) -> DocumentLosses:
    """The losses of several texts as those of one."""
    parts = list(losses)
    return DocumentLosses(np.concatenate([p.nats for p in parts]), np.concatenate([p.bytes for p in parts]))


def own_texts(model: ComposedModel, texts: Iterable[str], told: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Which of ``texts`` are of each expert's own language: as ``told``, or those that it was trained on by its record.

    An expert of which nothing is known, or whose texts are not among these, has none: it is compared on all texts.

    Raises:
        TreeringError: ``told`` names what is not there.
    """
    known, names = list(texts), [record["name"] for record in model.config.experts]
    for name, given in told.items():
        for wrong, what, there in ((name, "expert", names), *((text, "text", known) for text in given)):
            if wrong not in there:
                raise TreeringError(f"There is no {what} {wrong!r}. There are: {', '.join(there)}.")
    sources = {
        record["name"]: [source["name"] for source in (record.get("data") or {}).get("sources", [])]
        for record in model.config.experts
    }
    return {name: list(told.get(name, [text for text in known if text in read])) for name, read in sources.items()}


def differences(
    losses: Mapping[str, Mapping[str, DocumentLosses]], rules: Sequence[str], own: Mapping[str, Sequence[str]]
) -> list[Difference]:
    """Every rule against every expert on the expert's own texts, and against the better expert on all other texts.

    Args:
        losses: by text, what `composition_losses` returns.
        own: by expert, its own texts.
    """
    compared = []
    for text, measured in losses.items():
        owners = [name for name, texts in own.items() if text in texts]
        best = min(own, key=lambda name: measured[name].nats.sum())
        for joining in rules:
            for name in owners or [best]:
                change = paired_change(measured[joining], measured[name])
                compared.append(
                    Difference(
                        rule=joining,
                        text=text,
                        expert=name,
                        own=bool(owners),
                        change=round(change.change, 5),
                        low=round(change.low, 5),
                        high=round(change.high, 5),
                        documents=len(measured[name].nats),
                    )
                )
    return compared


def as_change_table(compared: Sequence[Difference]) -> Table:
    """Rules down, an expert on a text across; each cell the change and its interval, bold where joining is better."""
    table = Table("change of bits per byte", box=None)
    columns = list(dict.fromkeys((d["text"], d["expert"], d["own"]) for d in compared))
    for text, expert, own in columns:
        table.add_column(f"{text}\n{'' if own else 'best: '}{expert}", justify="right")
    for joining in dict.fromkeys(d["rule"] for d in compared):
        cells = {(d["text"], d["expert"]): d for d in compared if d["rule"] == joining}
        table.add_row(joining, *(_cell(cells[text, expert]) for text, expert, _ in columns))
    return table


def _cell(difference: Difference) -> str:
    text = f"{difference['change']:+.1%}"
    if difference["documents"] < 2:  # of one there is no interval
        return text
    text += f"\n{difference['low']:+.1%} … {difference['high']:+.1%}"
    return f"[bold]{text}[/]" if difference["high"] < 0 else text


def code_switched(directories: Iterable[str]) -> list[str]:
    """Held-out pages of prepared corpora that change language with every paragraph.

    Of each page that every source holds out, paragraph i is taken from source i modulo their number.

    Raises:
        TreeringError: fewer than two sources, or no page that all of them hold out.
    """
    pages: dict[str, dict[str, list[str]]] = {}
    for page in chain.from_iterable(map(load_held_out, directories)):
        pages.setdefault(page["source"], {})[page["id"]] = page["text"].split("\n")
    common = set.intersection(*map(set, pages.values())) if len(pages) > 1 else set()
    if not common:
        raise TreeringError(
            "Code-switched text is made of pages with the same id, held out in two or more sources: "
            f"{', '.join(pages) or 'no source'} share none."
        )
    switched = []
    for shared in sorted(common):
        versions = [paragraphs[shared] for paragraphs in pages.values()]
        switched.append("\n".join(versions[i % len(versions)][i] for i in range(min(map(len, versions)))))
    return switched
