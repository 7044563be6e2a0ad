"""What the papers claim, version by version, how each claim is put to the test here, and the rule of the verdict.

Everything here was written before the run whose results docs/reproduction.md tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from treering.composition import DEFAULT_RULE
from treering.evaluation import DocumentLosses
from treering.evaluation.bits import Change, paired_change, resampled_ratios
from treering.evaluation.choice import CHOICES
from treering.reproduction.recipe import ReproductionRecipe
from treering.reproduction.rows import (
    COPIED,
    MONOLITHIC,
    SHALLOW,
    STACKED,
    STACKED_CODE,
    STACKED_COMPUTE,
    STACKED_LORA,
)

Verdict = Literal["holds", "does not hold", "not told apart", "cannot be judged"]

NO_WORSE = 0.01
"""How much worse counts as no worse: 1% of the bits."""

ALL, RECALL, CONTINUATION = "all", "recall", "continuation"
"""What models are measured on besides each text: all texts together; questions made of them, whose loss is 1 for a
wrong choice, so that less is better here too."""

BEST = "best expert"
"""Of a text and a seed, the specialist with the fewest bits."""

RULES = {"mean": "mean", "evidence": DEFAULT_RULE}
"""How specialists are joined: as the paper's first version does, and as Treering does."""


@dataclass(frozen=True)
class Contrast:
    """A model beside another on one text; the claim is that it needs fewer bits, or makes fewer mistakes."""

    model: str
    reference: str
    text: str = ALL


@dataclass(frozen=True)
class Claim:
    """A claim, and what would bear it out: all ``contrasts``, with an interval below ``margin``; or a ``fact``.

    Attributes:
        source: who claims it, and in which version.
        margin: 0 for "better"; `NO_WORSE` for "no worse".
        fact: the name of something that is either so or not.
        beyond: why it cannot be judged at this size.
    """

    part: str
    words: str
    source: str
    contrasts: tuple[Contrast, ...] = ()
    margin: float = 0.0
    fact: str = ""
    beyond: str = ""


@dataclass(frozen=True)
class Measured:
    """A contrast as it was measured, seed by seed.

    Attributes:
        model, reference: bits per byte, or the share of wrong choices.
        changes: relative, each with the interval of a paired bootstrap over documents or questions.
        at_chance: the model's choices are not told apart from guessing with some seed, so that there is nothing to
            compare.
    """

    contrast: Contrast
    model: tuple[float, ...]
    reference: tuple[float, ...]
    changes: tuple[Change, ...]
    at_chance: bool = False


@dataclass(frozen=True)
class Finding:
    """A claim, what was measured for it, and what follows."""

    claim: Claim
    measured: tuple[Measured, ...]
    verdict: Verdict


def verdict(claim: Claim, measured: Sequence[Measured], facts: Mapping[str, bool]) -> Verdict:
    """What follows for a claim, by a rule that looks at intervals and seeds alone.

    It holds if each contrast's interval lies below the margin with every seed. It does not hold if the interval of some
    contrast lies above the margin with every seed. It is not told apart otherwise. It cannot be judged if it says so
    itself, or if what it compares is guessing.
    """
    if claim.fact:
        return "holds" if facts[claim.fact] else "does not hold"
    if claim.beyond or any(one.at_chance for one in measured):
        return "cannot be judged"
    if all(change.high < claim.margin for one in measured for change in one.changes):
        return "holds"
    if any(all(change.low > claim.margin for change in one.changes) for one in measured):
        return "does not hold"
    return "not told apart"


Losses = Mapping[str, Mapping[str, DocumentLosses]]
"""By model, by text."""


def judge(claim: Claim, seeds: Sequence[Losses], facts: Mapping[str, bool]) -> Finding:
    """Measure a claim's contrasts on what every seed lost, and apply the rule."""
    measured = tuple(compare(contrast, seeds) for contrast in claim.contrasts)
    return Finding(claim, measured, verdict(claim, measured, facts))


def compare(contrast: Contrast, seeds: Sequence[Losses]) -> Measured:
    """A contrast's values and intervals; of wrong choices, whether the model guesses."""
    pairs = [(own[contrast.model][contrast.text], own[contrast.reference][contrast.text]) for own in seeds]
    counted = contrast.text in (RECALL, CONTINUATION)
    return Measured(
        contrast,
        tuple(value(model, contrast.text) for model, _ in pairs),
        tuple(value(reference, contrast.text) for _, reference in pairs),
        tuple(paired_change(model, reference) for model, reference in pairs),
        counted and any(guesses(model) for model, _ in pairs),
    )


def value(losses: DocumentLosses, text: str) -> float:
    """Bits per byte, or of questions the share of wrong choices."""
    return losses.bits_per_byte * (math.log(2) if text in (RECALL, CONTINUATION) else 1)


def guesses(wrong: DocumentLosses) -> bool:
    """Whether the 95% interval of wrong choices reaches those of a guess."""
    return bool(np.quantile(resampled_ratios(wrong.nats, wrong.bytes, seed=0), 0.975) >= 1 - 1 / CHOICES)


def stage(depth: int, way: str = STACKED) -> str:
    """What a grown model is called after the stage that made it so deep."""
    return f"{way}, at depth {depth}"


def expert(name: str) -> str:
    """What an expert is called among the models."""
    return f"expert {name}"


def joined(rule: str, members: int) -> str:
    """What a composition is called among the models."""
    return f"joined by {rule}, {members}"


V1, V2, V3 = "v1 (July 2025)", "v2 (November 2025)", "v3 (May 2026)"
SEMANTICS = "Emergent Semantics (arXiv 2507.04886)"
FOLLOW_UP = "the follow-up (arXiv 2605.09751)"
OURS = "a control of ours"
LARGE = "MMLU, ARC, SQuAD and BLEU stand at chance or at zero for models of {parameters:,} parameters"


def claims(recipe: ReproductionRecipe, parameters: int) -> list[Claim]:
    """All claims that are tried, in the order of the papers' abstracts, and the controls that they call for."""
    depths, common, whole = list(recipe.depths), recipe.common, len(recipe.specialists)
    texts, each = list(recipe.texts), list(recipe.specialists)
    beyond = LARGE.format(parameters=parameters)
    steps = list(zip(depths[1:], depths, strict=False))
    interface, growth, composition = "interface", "growth", "composition"

    def deeper(way: str) -> tuple[Contrast, ...]:
        return tuple(Contrast(stage(deep, way), stage(low, way)) for deep, low in steps)

    found = [
        Claim(
            interface,
            "a frozen glyph interface does better than a trainable embedding",
            f"{SEMANTICS}, on MMLU",
            (Contrast(MONOLITHIC, "monolithic, trainable"),),
        ),
        Claim(
            interface,
            "a frozen glyph interface does no worse than a trainable embedding",
            "what the claim before needs at the least",
            (Contrast(MONOLITHIC, "monolithic, trainable"),),
            NO_WORSE,
        ),
        Claim(
            interface,
            "a frozen 16-bit code does no worse than a trainable embedding",
            FOLLOW_UP,
            (Contrast("monolithic, code", "monolithic, trainable"),),
            NO_WORSE,
        ),
        Claim(
            interface,
            "the 16-bit code does no worse than glyphs",
            OURS,
            (Contrast("monolithic, code", MONOLITHIC),),
            NO_WORSE,
        ),
        Claim(
            interface,
            "frozen random rows do no worse than glyphs: what is drawn does not matter",
            OURS,
            (Contrast("monolithic, random", MONOLITHIC),),
            NO_WORSE,
        ),
        Claim(interface, "frozen glyphs reach higher MMLU than a trainable embedding", SEMANTICS, beyond=beyond),
        Claim(
            growth,
            "stable convergence: each stage ends below the one before",
            f"{V1}, {V2}; {V3}: useful continued learning",
            deeper(STACKED),
        ),
        Claim(growth, "the same on the 16-bit code", V3, deeper(STACKED_CODE)),
        Claim(
            growth,
            "ability grows with depth: the deepest needs fewer bits than the shallowest stage",
            f"{V1}, {V2}",
            (Contrast(stage(depths[-1]), stage(depths[0])),),
        ),
        Claim(
            growth,
            "and it is depth that does it: fewer bits than its lowest blocks trained on all the tokens",
            f"a control of ours: what {V1} and {V2} need",
            (Contrast(STACKED, SHALLOW),),
        ),
        Claim(
            growth,
            "the same with LoRA phases",
            f"a control of ours: what {V2} needs",
            (Contrast(STACKED_LORA, SHALLOW),),
        ),
        Claim(
            growth,
            "ability grows with depth: recall of what the context states, which shallower stages lack",
            f"{V1}, {V2}, on SQuAD; here a question set made of held-out words",
            (Contrast(stage(depths[-1]), stage(depths[0]), RECALL),),
        ),
        Claim(
            growth,
            "ability grows with depth: choosing the paragraph that follows",
            f"{V1}, {V2}, on benchmarks; here questions made of held-out pages",
            (Contrast(stage(depths[-1]), stage(depths[0]), CONTINUATION),),
        ),
        Claim(growth, "SQuAD and MMLU emerge at some depth", f"{V1}, {V2}", beyond=beyond),
        Claim(
            growth,
            "grown rivals monolithic training of the same depth: no worse",
            V2,
            (Contrast(STACKED, MONOLITHIC),),
            NO_WORSE,
        ),
        Claim(
            growth,
            "with LoRA phases, grown rivals monolithic training: no worse",
            V2,
            (Contrast(STACKED_LORA, MONOLITHIC),),
            NO_WORSE,
        ),
        Claim(
            growth,
            "grown rivals monolithic training that costs as many FLOPs: no worse",
            "a control of ours, in favour of growth",
            (Contrast(STACKED_COMPUTE, MONOLITHIC),),
            NO_WORSE,
        ),
        Claim(
            growth,
            "growth has a clear cost against monolithic training in final loss",
            V3,
            (Contrast(MONOLITHIC, STACKED),),
        ),
        Claim(
            growth,
            "LoRA phases help the grown model",
            f"what {V2} and {V3} add them for",
            (Contrast(STACKED_LORA, STACKED),),
        ),
        Claim(
            growth,
            "blocks that begin as copies, by turns, do better than frozen ones under the same budget",
            "Treering",
            (Contrast(COPIED, STACKED),),
        ),
        Claim(
            growth,
            "blocks that begin as copies do better than the shallow model",
            "Treering",
            (Contrast(COPIED, SHALLOW),),
        ),
    ]
    for rule in RULES:
        who = f"{V1}; in no later abstract" if rule == "mean" else "Treering"
        found += [
            Claim(
                composition,
                f"joined by {rule}, {whole} specialists need fewer bits on all texts together than either",
                who,
                tuple(Contrast(joined(rule, whole), expert(name)) for name in each),
            ),
            Claim(
                composition,
                f"joined by {rule}, they need fewer bits than the best of them on the text that all know ({common})",
                who,
                (Contrast(joined(rule, whole), BEST, common),),
            ),
            Claim(
                composition,
                f"joined by {rule}, nothing is forgotten: no worse than each specialist on its own text",
                who,
                tuple(Contrast(joined(rule, whole), expert(name), name) for name in each),
                NO_WORSE,
            ),
            Claim(
                composition,
                f"joined by {rule} with one more ({common}), nothing is forgotten: no worse than each on its own text",
                f"{V1}: any number of experts; in no later abstract" if rule == "mean" else "Treering",
                tuple(Contrast(joined(rule, whole + 1), expert(name), name) for name in texts),
                NO_WORSE,
            ),
        ]
    found += [
        Claim(
            composition,
            "an expert joins without any change to the others, and leaves without a trace, to the byte",
            f"{V1}: modules compose freely, without any change",
            fact="comes and goes",
        ),
        Claim(
            composition,
            "the composition surpasses its experts on MMLU and other question sets",
            f"{V1}; in no later abstract",
            beyond=beyond,
        ),
    ]
    return found
