"""What a small model can choose between, made from held-out text: the next paragraph, a value stated before.

The large question sets stand at chance where models of a few million parameters are tried; these move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.backbone import context_length
from treering.corpus import Window
from treering.errors import TreeringError
from treering.evaluation.bits import Show, document_losses, own_surprise, resampled_ratios, spread, window_losses
from treering.tokenizer import encode, separator

CHOICES = 4
FACTS = 6
"""Facts that a passage of `recalls` states; four of their values are the choices."""
RECALLS = 200
"""Questions of `recalls`."""
TRANSLATIONS = 4
"""Questions that `translations` asks of a page at most."""

SHORTEST, LONGEST = 20, 200
"""Characters of a paragraph that is a choice: long enough to be told from others, short enough for a small context."""


@dataclass(frozen=True)
class Question:
    """A text and what may follow it, of which one does."""

    context: str
    choices: tuple[str, ...]
    answer: int


class Ability(TypedDict):
    """One measure of one model on one text; ``low`` and ``high`` bound the 95% interval over documents or questions."""

    model: str
    text: str
    measure: str
    value: float
    low: float
    high: float
    count: int


def continuations(documents: Sequence[str], seed: int = 0) -> list[Question]:
    """For each document with two fitting paragraphs in a row, which of four paragraphs comes next; chance is 1/4.

    The other three are other paragraphs, of other documents.
    """
    rng = np.random.default_rng(seed)
    paragraphs = [document.split("\n") for document in documents]
    fitting = [[p for p in own if SHORTEST <= len(p) <= LONGEST] for own in paragraphs]
    questions = []
    for index, own in enumerate(paragraphs):
        places = [i for i in range(1, len(own)) if own[i] in fitting[index]]
        if not places:
            continue
        place = int(rng.choice(places))
        others = sorted({p for other, found in enumerate(fitting) if other != index for p in found} - {own[place]})
        if len(others) >= CHOICES - 1:
            wrong = [others[i] for i in rng.choice(len(others), CHOICES - 1, replace=False)]
            questions.append(_question("\n".join(own[:place]) + "\n", own[place], wrong, rng))
    return questions


def translations(pages: Mapping[str, str], others: Mapping[str, str], seed: int = 0) -> list[Question]:
    """Of pages in two languages, which of four paragraphs says the same as the one before; chance is 1/4.

    The other three are paragraphs of other pages, in the second language too. So fluency does not tell them apart.

    Args:
        pages: texts by their names; of those with as many paragraphs as in ``others``, the paragraphs correspond.
    """
    rng = np.random.default_rng(seed)
    pairs = {name: (pages[name].split("\n"), others[name].split("\n")) for name in sorted(pages.keys() & others.keys())}
    fitting = {
        name: [i for i, both in enumerate(zip(*pair, strict=True)) if all(SHORTEST <= len(p) <= LONGEST for p in both)]
        for name, pair in pairs.items()
        if len(pair[0]) == len(pair[1])
    }
    questions = []
    for name, places in fitting.items():
        elsewhere = {pairs[other][1][i] for other, own in fitting.items() if other != name for i in own}
        for place in sorted(rng.permutation(places)[:TRANSLATIONS].tolist()):
            asked, right = (paragraphs[place] for paragraphs in pairs[name])
            wrong = sorted(elsewhere - {right})
            if len(wrong) >= CHOICES - 1:
                drawn = [wrong[i] for i in rng.choice(len(wrong), CHOICES - 1, replace=False)]
                questions.append(_question(f"{asked}\n", right, drawn, rng))
    return questions


def recalls(documents: Sequence[str], count: int = RECALLS, seed: int = 0) -> list[Question]:
    """Passages that state values of names, and ask for one again: the smallest extractive question answering.

    Names and values are words of the documents, so that nothing but the passage joins them. The four choices are values
    that the passage states, so that a model which only knows which words occurred is at chance, 1/4. One block can
    hardly look up what stood beside a name; two can.
    """
    rng = np.random.default_rng(seed)
    words = sorted({word for document in documents for word in re.findall(r"[^\W\d_]{4,10}", document)})
    if len(words) < 2 * FACTS:
        return []
    questions = []
    for _ in range(count):
        drawn = [words[i] for i in rng.choice(len(words), 2 * FACTS, replace=False)]
        names, values = drawn[:FACTS], drawn[FACTS:]
        asked = int(rng.integers(FACTS))
        wrong = [values[i] for i in rng.choice([i for i in range(FACTS) if i != asked], CHOICES - 1, replace=False)]
        facts = "\n".join(f"{name} — {value}" for name, value in zip(names, values, strict=True))
        questions.append(_question(f"{facts}\n{names[asked]} — ", values[asked], wrong, rng))
    return questions


def _question(context: str, right: str, wrong: list[str], rng: np.random.Generator) -> Question:
    choices = [right, *wrong]
    order = rng.permutation(len(choices))
    return Question(context, tuple(choices[i] for i in order), int(np.argmin(order)))


def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], show: Show = iter
) -> np.ndarray:
    """Which choice of each question [question] the model finds likeliest for its length, in nats per UTF-8 byte.

    A context that does not fit into the model's loses its beginning.
    """
    start, limit, cut = separator(tokenizer), context_length(model.config) + 1, list[Window]()
    contexts = encode(tokenizer, [question.context for question in questions])
    choices = [choice for question in questions for choice in question.choices]
    for index, ids in enumerate(encode(tokenizer, choices)):
        before = [start, *contexts[index // CHOICES]][-(limit - len(ids)) :] if len(ids) < limit else [start]
        cut.append(Window(index, [*before, *ids][:limit], len(before)))
    (nats,) = window_losses(own_surprise(model), model, cut, len(choices), show)
    sizes = np.array([len(choice.encode()) for choice in choices])
    return (nats / sizes).reshape(-1, CHOICES).argmin(1)


def abilities(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    most: int | None = None,
    console: Console | None = None,
) -> list[Ability]:
    """Bits per byte, continuation choice and in-context recall on each text (a name and its documents).

    Args:
        most: so many documents of each text at most, and so many questions of each kind; all if not given.
        console: where a bar shows how far the work is.

    Raises:
        TreeringError: there is no text.
    """
    if not texts:
        raise TreeringError("There is no text to measure on.")
    found = list[Ability]()
    columns = BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console or Console(quiet=True), transient=True) as progress:
        for text, documents in texts.items():
            documents = documents[:most]
            score = document_losses(model, tokenizer, documents, _bar(progress, text, "bits per byte")).score()
            bits = score.bits_per_byte, score.low, score.high, score.documents
            found.append(_ability(name, text, "bits per byte", *bits))
            asked = recalls(documents, RECALLS if most is None else min(most, RECALLS))
            for measure, questions in (("continuation", continuations(documents)), ("recall", asked)):
                if questions:
                    chosen = choose(model, tokenizer, questions, _bar(progress, text, measure))
                    right = chosen == np.array([question.answer for question in questions])
                    shares = resampled_ratios(right.astype(float), np.ones(len(right)), seed=0)
                    low, high = np.quantile(shares, [0.025, 0.975])
                    found.append(_ability(name, text, measure, float(right.mean()), low, high, len(right)))
    return found


def _bar(progress: Progress, text: str, measure: str) -> Show:
    return lambda batches: progress.track(batches, description=escape(f"{text}: {measure}"))


def _ability(model: str, text: str, measure: str, value: float, low: float, high: float, count: int) -> Ability:
    return Ability(
        model=model,
        text=text,
        measure=measure,
        value=round(value, 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        count=count,
    )


def as_abilities_table(found: Sequence[Ability]) -> Table:
    """Models down, measures of each text across; each cell the value and half the width of its interval."""
    table = Table("model", box=None)
    columns = list(dict.fromkeys((a["text"], a["measure"], a["count"]) for a in found))
    for text, measure, count in columns:
        table.add_column(f"{text}\n{measure} ({count})", justify="right")
    for model in dict.fromkeys(a["model"] for a in found):
        cells = {(a["text"], a["measure"]): a for a in found if a["model"] == model}
        table.add_row(model, *(_cell(cells[text, measure]) for text, measure, _ in columns))
    return table


def _cell(ability: Ability) -> str:
    form = ".3f" if ability["measure"] == "bits per byte" else ".1%"
    return f"{ability['value']:{form}}{spread(ability['low'], ability['high'], ability['count'], form)}"
