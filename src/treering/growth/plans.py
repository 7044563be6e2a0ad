"""Ready plans: the paper's, baselines, and better ones; functions from a shape to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from treering.errors import TreeringError
from treering.growth.plan import Head, Plan, Stage, Turns


def monolithic(depth: int) -> Plan:
    """Everything trains all along: the upper yardstick; with few blocks, the shallow model of the same budget."""
    return Plan(stages=(Stage(new=_span(1, depth), start="random", share=1.0),))


def stacked(depth: int, width: int = 1) -> Plan:
    """The paper's way (section 5): ``width`` new random blocks a stage, tokens in proportion, a schedule each."""
    spans = [_span(low, min(low + width - 1, depth)) for low in range(1, depth + 1, width)]
    return Plan(stages=tuple(Stage(new=new, start="random", share=len(new) / depth) for new in spans))


def sliding(depth: int, width: int, slide: int) -> Plan:
    """Overlapping windows: ``width`` blocks train, and their window moves up by ``slide`` < ``width`` a stage.

    The active budget is that of ``width`` blocks, but each block also trains under its successors.
    """
    tops = [*range(width, depth, slide), depth]
    stages = [
        Stage(
            new=_span(below + 1, top),
            train=_span(top - width + 1, top),
            start="zero" if below else "random",
            share=1 / len(tops),
            rate=None if top == depth else (1.0, 1.0),
            keep_moments=bool(below),
        )
        for below, top in zip([0, *tops], tops, strict=False)
    ]
    return Plan(stages=tuple(stages))


def revolving(
    depth: int,
    width: int,
    base: float = 0.5,
    rounds: int = 1,
    order: Sequence[int] | None = None,
    decay: float = 0.2,
    final: float = 0.1,
    keep_moments: bool = True,
) -> Plan:
    """The lowest window long, one jump to full depth, then the window revolves over the whole stack.

    The gradients of a low window pass through the frozen blocks above it (block-coordinate descent, as BAdam's).
    New blocks start at zero; the rate falls in the last turns alone.

    Args:
        base: share of the tokens for the lowest window alone; without, the whole stack stands from the start.
        rounds: how often the windows are gone through.
        order: of the windows in a round, 0 being the lowest; from the top down if not given.
        decay: share of all tokens in which the rate falls, on a line to ``final``.
        keep_moments: each window goes on with its optimiser's state instead of starting Adam afresh.
    """
    windows = [_span(low, min(low + width - 1, depth)) for low in range(1, depth + 1, width)]
    turns = [windows[i] for _ in range(rounds) for i in (order or range(len(windows) - 1, -1, -1))]
    share = (1 - base) / len(turns)
    stages = [Stage(new=windows[0], start="random", share=base, rate=(1.0, 1.0))] if base else []
    standing = width if base else 0
    for number, window in enumerate(turns):
        begun = base + number * share
        stages.append(
            Stage(
                new=() if number else _span(standing + 1, depth),
                start="zero" if base else "random",
                train=window,
                share=share,
                keep_moments=keep_moments,
                warmup=0.0 if keep_moments and number >= len(windows) else 0.1,
                rate=(falling_rate(begun, decay, final), falling_rate(begun + share, decay, final)),
            )
        )
    return Plan(stages=tuple(stages))


def by_turns(depth: int, width: int, turn: int = 25, base: float = 0.0, head: bool = False) -> Plan:
    """The whole stack, ``width`` blocks at a time for ``turn`` steps each, over and over, from the top down.

    Args:
        base: share of the tokens for the lowest ``width`` blocks alone, before the others join them at zero.
        head: it trains in the turn of the lowest blocks alone.
    """
    turns = Turns(width=width, steps=turn, head=head)
    if not base:
        return Plan(stages=(Stage(new=_span(1, depth), start="random", turns=turns, share=1.0),))
    low = Stage(new=_span(1, width), start="random", share=base, rate=(1.0, 1.0))
    whole = Stage(new=_span(width + 1, depth), train=_span(1, depth), turns=turns, share=1 - base, keep_moments=True)
    return Plan(stages=(low, whole))


def looped(
    depth: int, width: int, turn: int = 25, base: float = 0.3, head: bool = False, tied: int = 2, final: float = 0.1
) -> Plan:
    """Full depth from the start: first as ``tied`` blocks over and over, then apart, by turns.

    While they are tied, few parameters stand at every depth and train on every token (Dehghani et al. 2019, universal
    Transformers); apart, each block goes on from there, with its optimiser's state.

    Args:
        base: share of the tokens while blocks are tied.
        head: it trains in the turn of the lowest blocks alone.
        final: the rate is constant while blocks are tied and falls to this share on a line afterwards.
    """
    whole, turns = _span(1, depth), Turns(width=width, steps=turn, head=head)
    loop = Stage(new=whole, start="random", tied=tied, share=base, rate=(1.0, 1.0))
    apart = Stage(train=whole, turns=turns, share=1 - base, keep_moments=True, warmup=0.0, rate=(1.0, final))
    return Plan(stages=(loop, apart))


def copied(
    depth: int, width: int, turn: int = 25, base: float = 0.3, head: bool = False, low: int = 2, final: float = 0.1
) -> Plan:
    """The lowest blocks alone, then one jump to full depth as copies of them over and over (G_stack, Du et al. 2024).

    A step of the first stage costs what a shallow model's does, and what it learned stands at every depth afterwards.

    Args:
        width: blocks that train at once after the jump, by turns; with ``depth``, all do all the time.
        base: share of the tokens for the ``low`` blocks alone, at a constant rate.
        head: it trains in the turn of the lowest blocks alone.
        final: the rate falls to this share on a line after the jump.
    """
    turns = Turns(width=width, steps=turn, head=head) if width < depth or head else None
    first = Stage(new=_span(1, low), start="random", share=base, rate=(1.0, 1.0))
    whole = Stage(
        new=_span(low + 1, depth),
        train=_span(1, depth),
        turns=turns,
        start="loop",
        share=1 - base,
        keep_moments=True,
        warmup=0.0,
        rate=(1.0, final),
    )
    return Plan(stages=(first, whole))


def branch(depth: int, blocks: int = 2, leave: int = 0, head: Head = "frozen") -> Plan:
    """A branch on the trunk of a model that exists: a few blocks of its own on top of what it shares.

    Args:
        depth: blocks of the model.
        blocks: new ones on top, which add nothing at first.
        leave: blocks below the top where the branch leaves the trunk; those above are copies, and train.
        head: a frozen one is the model's own, and so that of all its branches.

    Raises:
        TreeringError: the stack has fewer blocks than that, or nothing would be the branch's own.
    """
    if leave > depth:
        raise TreeringError(
            f"The branch cannot leave the trunk {leave} blocks below the top: the model has {depth}."
            + (f" Give from: {depth} at most." if depth else " Grow it some first.")
        )
    if not blocks and not leave:
        raise TreeringError(
            "The branch has no block of its own: give it new ones (blocks: 2) or a place to leave (from: 2)."
        )
    own = _span(depth - leave + 1, depth + blocks)
    return Plan(stages=(Stage(new=_span(depth + 1, depth + blocks), train=own, share=1.0),), head=head)


def falling_rate(progress: float, decay: float, final: float) -> float:
    """Share of the highest rate after ``progress`` of all tokens: constant, then a line down to ``final``."""
    return round(1 - (1 - final) * max(0.0, progress - (1 - decay)) / decay, 6) if decay else 1.0


def _span(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1))
