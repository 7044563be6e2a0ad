"""One plain sentence for the top of a page, from the numbers alone: a gain, a loss, or that none can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VERDICTS = (
    ("holds", "held here"),
    ("does not hold", "did not"),
    ("not told apart", "could not be told apart from nothing"),
    ("cannot be judged", "cannot be judged at this size"),
)
"""What is said of how many claims, by their verdict (``treering.reproduction``)."""


class Found(NamedTuple):
    """A change of bits per byte as a share of them (−0.01: one percent fewer), and its 95% interval over so many."""

    change: float
    low: float
    high: float
    documents: int = 2

    @property
    def sign(self) -> int:
        """−1 where bits were saved, 1 where they were lost, 0 where the interval holds no change, or there is none."""
        return 0 if self.documents < 2 else -1 if self.high < 0 else 1 if self.low > 0 else 0

    @property
    def tint(self) -> float:
        """How it marks a cell (see `treering.report.Cell`)."""
        return tint(self.sign, self.change)

    @property
    def share(self) -> str:
        """How large it is, without its sign."""
        return f"{abs(self.change):.1%}" if abs(self.change) >= 0.0005 else f"{abs(self.change):.2%}"

    @property
    def interval(self) -> str:
        """Its interval as people read it; nothing where there is none."""
        return f"{self.low:+.1%} … {self.high:+.1%}" if self.documents > 1 else ""


def tint(sign: int, change: float) -> float:
    """How a change marks a cell: full from a quarter on, never too faint to see, nothing where none can be told."""
    return -sign * min(1.0, 0.25 + 3 * abs(change))


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def of_training(name: str, validation: Sequence[tuple[int, float]], tokens: int, seconds: float) -> str:
    """Of a run: what it reached, and whether it went on getting better.

    Args:
        validation: step and bits per byte of each validation.
    """
    step, best = min(validation, key=lambda entry: entry[1])
    last, at_end = validation[-1]
    begin = f"{name} reached {best:.3f} bits per byte on text that it does not train on"
    if len(validation) < 2:
        return f"{begin}, after {tokens:,} tokens in {_time(seconds)}."
    if step == last:
        return f"{begin}, after {tokens:,} tokens in {_time(seconds)}; it was best at its end, so more might serve."
    return f"{begin} at step {step:,}, and then no better: it ended, at step {last:,}, with {at_end:.3f}."


def of_growth(depths: Sequence[int], bits: Sequence[float], texts: Mapping[str, tuple[Any, Any]]) -> str:
    """Of a model that grew: whether it was better at its end than after its first stage.

    Args:
        depths: blocks after each stage; ``bits``: of the validation text there.
        texts: by text, the low and the high end of the intervals [first and last stage] of its bits per byte.
    """
    grown = f"from {blocks(depths[0])} to {depths[-1]}" if depths[0] != depths[-1] else f"at {blocks(depths[-1])}"
    stages = f"{len(depths)} stage{'s' * (len(depths) != 1)}"
    if len(depths) < 2:
        return (
            f"In {stages}, {grown}, the model reached {bits[-1]:.3f} bits per byte on text that it does not train on."
        )
    way = "fell" if bits[-1] < bits[0] else "rose" if bits[-1] > bits[0] else "stayed"
    begin = f"In {stages}, {grown}, validation {way} from {bits[0]:.3f} to {bits[-1]:.3f} bits per byte"
    if not texts:
        return f"{begin}; without held-out documents there is no interval."
    better = [text for text, ((low, _), (_, high)) in texts.items() if high < low]
    worse = [text for text, ((_, high), (low, _)) in texts.items() if low > high]
    if worse:
        return f"{begin}; on {listed(worse)} the last stage is worse than the first, interval apart from interval."
    if better:
        return f"{begin}; on {listed(better)} the intervals of the first and the last stage lie apart."
    return f"{begin}; the 95% intervals of the first and the last stage overlap on every text."


def of_composition(experts: Sequence[str], rule: str, fitted: bool) -> str:
    """Of a composition that was not measured: who it is."""
    how = "what joins them was fitted on text set apart" if fitted else "nothing was trained to join them"
    return f"{listed(experts)} answer as one model, joined by {rule}; {how}."


def of_joining(rule: str, own: Mapping[tuple[str, str], Found], others: Mapping[str, Found]) -> str:
    """What joining by a rule did to experts on their own texts, and against the better one on the others.

    Args:
        own: by expert and text, the change from that expert; ``others``: by text, the change from the better expert.
    """
    parts = []
    lost = {names: found for names, found in own.items() if found.sign > 0}
    if lost:
        expert, text = max(lost, key=lambda names: lost[names].change)
        worst = lost[expert, text]
        most = "at most " if len(own) > 1 else ""
        whose = f"{expert} on {text}, 95% interval {worst.interval}"
        parts.append(f"joining costs an expert {most}{worst.share} on its own text ({whose})")
    elif own and all(found.sign < 0 for found in own.values()):
        least = max(own.values(), key=lambda found: found.change)
        parts.append(f"every expert gains on its own text, by {least.share} at least")
    elif own:
        parts.append("no expert loses anything on its own text that can be told from nothing")
    if others:
        parts.append(f"together they need {listed(_needs(others, 'the better expert'))}")
    return f"Joined by {rule}, {'; '.join(parts) or 'the experts were measured on no text'}."


def of_kinds(kinds: Sequence[Sequence[str]], doubtful: Sequence[tuple[str, str]] = ()) -> str:
    """Which experts are of one kind.

    Args:
        doubtful: pairs of which more documents could say the opposite.
    """
    several, alone = [listed(kind) for kind in kinds if len(kind) > 1], [kind[0] for kind in kinds if len(kind) == 1]
    parts = [f"{names} are of one kind" for names in several]
    if alone:
        parts.append(f"{listed(alone)} {_is(len(alone))} {'each ' if len(alone) > 1 else ''}of a kind of its own")
    if doubtful:
        pairs = listed([f"{one} beside {other}" for one, other in doubtful])
        parts.append(f"more documents could say the opposite of {pairs}")
    return f"Found, not told: {'; '.join(parts)}."


def of_speaking_together(rule: str, default: str, changes: Mapping[str, Found], alone: Sequence[str]) -> str:
    """What a rule that lets experts of one kind speak together is worth.

    Args:
        changes: by text on which several experts have a say, the change from ``default``.
        alone: the texts on which one has.
    """
    parts = []
    if changes:
        parts.append(f"where several experts have a say, {rule} needs {listed(_needs(changes, default))}")
    if alone:
        parts.append(f"on {listed(alone)} one alone has a say, so that nothing is to be gained by {rule}")
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."


def of_changes(who: str, whom: str, changes: Mapping[str, Found]) -> str:
    """One model against another, text by text."""
    return f"{who} needs {listed(_needs(changes, whom))}."


def _needs(changes: Mapping[str, Found], whom: str) -> list[str]:
    """How many bits, against whom, on which texts; those where nothing can be told are named together."""
    told = [
        f"{found.share} {'fewer' if found.sign < 0 else 'more'} bits per byte than {whom} on {text}"
        for text, found in changes.items()
        if found.sign
    ]
    if unknown := [text for text, found in changes.items() if not found.sign]:
        told.append(f"as many bits per byte as {whom}, as far as can be told, on {listed(unknown)}")
    return told


def of_bits(best: Mapping[str, tuple[str, bool]], guessed: Sequence[str] = ()) -> str:
    """Which model needs the fewest bits on which text.

    Args:
        best: by text, that model, and whether its interval lies below those of all others.
        guessed: texts where the baseline that knows nothing needs no more.
    """
    models = list(dict.fromkeys(model for model, _ in best.values()))
    parts = [f"{model} on {listed([text for text, (own, _) in best.items() if own == model])}" for model in models]
    clear = sum(below for _, below in best.values())
    told = "every" if clear == len(best) else "no" if clear == 0 else f"{clear} of {len(best)}"
    text = "text" if told in ("every", "no") or len(best) == 1 else "texts"
    apart = f"on {told} {text} its 95% interval lies below all others"
    return f"Fewest bits per byte: {listed(parts)}; {apart}{_guessed(guessed)}."


def of_bits_alone(model: str, bits: Mapping[str, float], guessed: Sequence[str] = ()) -> str:
    """How many bits the only model needs on each text; ``guessed`` as for `of_bits`."""
    needs = listed([f"{value:.3f} bits per byte on {text}" for text, value in bits.items()])
    return f"{model} needs {needs}{_guessed(guessed)}."


def _guessed(texts: Sequence[str]) -> str:
    return f"; to guess among all tokens evenly takes no more on {listed(texts)}" if texts else ""


def of_comparison(models: Sequence[str], wins: Mapping[str, int], losses: Mapping[str, int], subjects: int) -> str:
    """Who beats all others most often.

    Args:
        wins: by model, on how many subjects it beats every other; ``losses``: on how many it is beaten by one.
    """
    best = max(models, key=lambda model: (wins[model], -losses[model]))
    measures = f"{subjects} measure{'s' * (subjects != 1)}"
    if not wins[best]:
        return f"None of {listed(list(models))} beats all others on any of {measures}, as far as can be told."
    others = listed([model for model in models if model != best])
    on = f"on all of {measures}" if wins[best] == subjects else f"on {wins[best]} of {measures}"
    rest = f", and is beaten on {losses[best]}" if losses[best] else ", and is beaten on none"
    return f"{best} beats {others} {on}{rest if wins[best] < subjects else ''}."


def of_abilities(
    models: Sequence[str], right: Sequence[tuple[str, float, float]], otherwise: str = "measured by bits per byte alone"
) -> str:
    """Which choices models make better than by chance.

    Args:
        right: model, low end of its 95% interval of right choices, and chance.
        otherwise: what is said where there is none.
    """
    above = sum(low > chance for _, low, chance in right)
    if not right:
        return f"{_models(models)}, {otherwise}."
    kinds = f"{len(right)} kind{'s' * (len(right) != 1)} of choices"
    return (
        f"Of {kinds} that {_models(models)} made, {above or 'none'} {_has(above)} the whole 95% interval above chance."
    )


def of_paper(models: Sequence[str], right: Sequence[tuple[float, float]], unanswered: Sequence[float]) -> str:
    """What the paper's protocol found.

    Args:
        right: of each model and exam that can be guessed, the low end of its margin, and chance.
        unanswered: shares of what was written that was no answer at all.
    """
    none = f"up to {max(unanswered):.0%} of what was written was no answer at all" if unanswered else ""
    if not right:
        return f"{_models(models)}, by the paper's protocol: {none or 'on no exam that could be guessed'}."
    above = sum(low > chance for low, chance in right)
    results = f"{len(right)} result{'s' * (len(right) != 1)}"
    told = f"Of {results} of {_models(models)} on exams that can be guessed, {above or 'none'} {_is(above or 2)}"
    return f"{told} above chance by more than the runs' margin; {none}."


def _models(models: Sequence[str]) -> str:
    return f"{len(models)} model{'s' * (len(models) != 1)}"


def of_growth_study(rows: Mapping[str, tuple[float, float, float]], seeds: int) -> str:
    """What growth gives of what depth gives.

    Args:
        rows: by name, bits per byte: the mean over the seeds, the lowest and the highest.
    """
    whole, shallow = rows.get("monolithic, glyph"), rows.get("shallow, glyph")
    whose = f"over {seeds} seeds" if seeds > 1 else "with one seed, so without an interval"
    grown = {name: row for name, row in rows.items() if not name.startswith(("monolithic", "shallow"))}
    grown = {name: row for name, row in grown.items() if not name.endswith("equal compute")}
    if not grown or whole is None:
        return f"The study has no pair of a model that grew and of one that was trained as a whole, {whose}."
    name = min(grown, key=lambda each: grown[each][0])
    bits, low, high = grown[name]
    beside = f"{name} reached {bits:.3f} bits per byte, monolithic training {whole[0]:.3f}"
    if shallow is not None and (whole[2] < shallow[1] if seeds > 1 else whole[0] < shallow[0]):
        share = (shallow[0] - bits) / (shallow[0] - whole[0])
        if share <= 0:
            return f"{beside}: growth gains nothing on the shallow model of its active budget, {whose}."
        return f"{beside}: {share:.0%} of what full depth gains on the shallow model of that budget, {whose}."
    if shallow is not None:
        return (
            f"{beside}, the shallow model {shallow[0]:.3f}: full depth itself gains nothing here beyond doubt, {whose}."
        )
    apart = "the better" if high < whole[1] else "the worse" if low > whole[2] else "not to be told apart"
    return f"{beside}: growth is {apart}, {whose}."


def of_arrivals(first: str, changes: Mapping[str, Found], forgetting: float) -> str:
    """How a way of learning on and on stands to the others.

    Args:
        changes: by other way, the change of its average from ``first``'s: above 0, it is worse.
    """
    signs = [found.sign for found in changes.values()]
    begin = f"After all tasks, {first} has forgotten {max(forgetting, 0):.1%}"
    if not signs:
        return f"{begin}; there is nothing to compare it with."
    parts = [
        f"is better than {signs.count(1)}",
        f"worse than {signs.count(-1)}",
        f"not to be told from {signs.count(0)}",
    ]
    return f"{begin}, and {listed(parts)} of {len(signs)} other ways."


def of_gains(rule: str, signs: Sequence[int]) -> str:
    """How often a composition beats its best member; ``signs`` as `Found.sign`."""
    won, lost = signs.count(-1), signs.count(1)
    if not won and not lost:
        return f"Joined by {rule}, members cannot be told from the best of them in any of {len(signs)} cases."
    return (
        f"Joined by {rule}, members together beat the best of them in {won} of {len(signs)} cases, lose to it in "
        f"{lost}, and cannot be told from it in {len(signs) - won - lost}."
    )


def of_verdicts(verdicts: Sequence[str]) -> str:
    """How many claims had which verdict."""
    told = [f"{count} {words}" for name, words in VERDICTS if (count := verdicts.count(name))]
    return f"Of {len(verdicts)} claims and controls: {listed(told)}."


def of_neighbours(own: float, chance: float, rows: int) -> str:
    """Whether rows lie near those of their own script.

    Args:
        own: share of rows whose nearest row is of the same script; ``chance``: what it would be if rows lay anyhow.
    """
    begin = f"Of {rows:,} rows, {own:.0%} have one of their own script nearest; {chance:.0%} would if they lay anyhow"
    margin = 1.96 * math.sqrt(own * (1 - own) / rows)
    return f"{begin}: {'script can' if own - margin > chance else 'no script can'} be seen in the rows."


def _has(count: int) -> str:
    return "has" if count < 2 else "have"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def blocks(count: int) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{count} block{'s' * (count != 1)}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:,.0f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:,.1f} h"
    )
