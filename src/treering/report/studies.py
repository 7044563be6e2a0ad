"""Pages of studies: growth, tasks that arrive one after another, compositions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from treering.evaluation.gains import COSTS, EVERY, OWN, Against, Gains, costs_cells, lines
from treering.growth.continual import Result
from treering.growth.outcome import Outcome
from treering.report.figures import arrivals, as_svg, loss_curves, overlaps
from treering.report.grids import change_cell
from treering.report.page import Cell, Drawing, Grid, Report, Section
from treering.report.takeaways import Found, of_arrivals, of_gains, of_growth_study, tint


def growth_study_report(
    outcomes: Sequence[Outcome], histories: Mapping[str, Sequence[Mapping[str, Any]]], command: str
) -> Report:
    """The page of ``treering study growth``.

    Args:
        histories: by row, the loss curve of one of its runs; of some rows there may be none.
    """
    best = min(one.bits_per_byte for one in outcomes)
    texts = list(outcomes[0].texts)
    reached: list[tuple[str, list[Cell | str]]] = [
        (
            one.name,
            [
                Cell(
                    f"{one.bits_per_byte:.4f}",
                    f"{one.low:.4f} … {one.high:.4f}" if one.seeds > 1 else "",
                    one.bits_per_byte == best,
                ),
                *(f"{one.texts[text]:.3f}" if text in one.texts else "" for text in texts),
                "" if one.recovered is None else f"{one.recovered:+.2f}",
            ],
        )
        for one in outcomes
    ]
    cost = [
        (
            one.name,
            [
                f"{one.active:,}",
                f"{one.optimiser:.2f}" + (f" + {one.optimiser_host:.2f} host" if one.optimiser_host else ""),
                f"{one.tokens / 1e6:.2f}",
                f"{one.flops / 1e12:.1f}",
                f"{one.seconds:,.0f}",
                f"{one.learning_rate:g}",
                f"{one.warmup:.0%}",
                one.schedule,
            ],
        )
        for one in outcomes
    ]
    drawn = [_drawing(loss_curves(histories), "loss", "Loss curves of the rows, one run of each")] if histories else []
    seeds = outcomes[0].seeds
    return Report(
        "Growth, compared",
        of_growth_study({one.name: (one.bits_per_byte, one.low, one.high) for one in outcomes}, seeds),
        [
            Section(
                "Bits per byte on held-out documents",
                [
                    Grid(
                        ["", "all", *texts, "recovered"],
                        reached,
                        f"Mean over {seeds} seeds, below it the lowest and the highest. Recovered: 0 is the shallow "
                        "model of the same active budget, 1 the monolithic one of full depth, on glyphs; it says "
                        "little where these two are near each other.",
                    ),
                    *drawn,
                ],
            ),
            Section(
                "What it cost, and with which settings",
                [
                    Grid(
                        [
                            "",
                            "active parameters",
                            "Adam MiB",
                            "M tokens",
                            "TFLOPs",
                            "seconds",
                            "rate",
                            "warm-up",
                            "schedule",
                        ],
                        cost,
                    )
                ],
            ),
        ],
        command=command,
    )


def continual_report(results: Sequence[Result], command: str) -> Report:
    """The page of ``treering study continual``."""
    first = next((one for one in results if one.method == "branches, evidence"), results[0])
    changes: dict[str, Found] = {one.method: Found(*one.change) for one in results if one.change is not None}
    best = min(one.average for one in results)
    rows: list[tuple[str, list[Cell | str]]] = [
        (
            one.method,
            [
                Cell(f"{one.average:.3f}", f"{one.low:.3f} … {one.high:.3f}", one.average == best),
                change_cell(changes[one.method]) if one.method in changes else "",
                f"{one.transfer:+.1%}",
                f"{one.forgetting:.1%}",
                f"{one.trained:,}",
                f"{one.stored:,}",
                f"{one.milliseconds:.1f}",
                f"{one.rate:g}",
            ],
        )
        for one in results
    ]
    tasks = list(first.matrices[next(iter(first.matrices))][0])
    kept = [(one.method, [_kept(one, task) for task in tasks]) for one in results]
    return Report(
        "Tasks that arrive one after another",
        of_arrivals(first.method, changes, first.forgetting),
        [
            Section(
                "At the end",
                [
                    Grid(
                        [
                            "",
                            "bits per byte",
                            f"against {first.method}",
                            "transfer",
                            "forgetting",
                            "trained",
                            "stored",
                            "ms/token",
                            "rate",
                        ],
                        rows,
                        "Mean over the tasks, orders and seeds, with 95% intervals over documents. Transfer: what "
                        "tasks gained from those that came after (below 0: lost); forgetting: how far they stand above "
                        "their best since they were learned.",
                    ),
                    _drawing(
                        arrivals({one.method: one.matrices for one in results}),
                        "arrivals",
                        "Bits per byte, mean over all tasks, after each arrival",
                    ),
                ],
            ),
            Section(
                "What became of each task",
                [
                    Grid(
                        ["", *tasks],
                        kept,
                        "Change of a task's bits per byte from when it had just been learned to the end, mean over "
                        "orders and seeds; below 0 it was learned better still by what came after, above 0 it was "
                        "forgotten. No interval: single documents are not kept.",
                    )
                ],
            ),
        ],
        command=command,
    )


def _kept(result: Result, task: str) -> Cell | str:
    """What became of a task, in the runs where others came after it."""
    changes = []
    for matrix in result.matrices.values():
        order = list(matrix[0])
        if task in order[:-1] and len(matrix) > len(order):
            own = matrix[order.index(task) + 1][task]
            changes.append(matrix[-1][task] / own - 1)
    if not changes:
        return ""
    mean = statistics.mean(changes)
    return Cell(f"{mean:+.1%}", tint=-max(-1.0, min(1.0, 3 * mean)))


def composition_study_report(found: Gains, command: str) -> Report:
    """The page of ``treering study composition``."""
    rules = list(dict.fromkeys(one.rule for one in found.outcomes))
    texts = list(dict.fromkeys(one.text for one in found.outcomes))
    others = list(dict.fromkeys(name for one in found.outcomes for name in one.against if name != EVERY))
    sections = [
        Section(
            f"Gains over the {OWN}",
            [
                _drawing(
                    overlaps(lines(found)),
                    "gains",
                    "Gain over the best member against overlap, by text and rule",
                )
            ],
        )
    ]
    for text in texts:
        rows = [
            (
                f"{one.rule}, {one.members} of each kind"
                + ("" if one.overlap is None else f", {one.overlap:.0%} shared"),
                [
                    f"{statistics.mean(one.bits_per_byte):.3f}",
                    *(_against(one.against[name]) if name in one.against else "" for name in others),
                    *costs_cells(one.costs),
                ],
            )
            for one in found.outcomes
            if one.text == text
        ]
        note = (
            "Change of bits per byte from the other model's, which stands below; below 0 joining is better. Means over "
            "seeds; a ground where every seed's 95% interval excludes 0 on the same side."
        )
        head = ["", "bits per byte", *(f"against {name}" for name in others), *COSTS]
        sections.append(Section(f"On {text}", [Grid(head, rows, note)]))
    if found.yardsticks:
        sections.append(Section("One model on all texts", [_yardsticks(found, texts)]))
    signs = [_sign(one.against[OWN]) for one in found.outcomes if one.rule == rules[0]]
    rates = [(f"learning rate of {name}", f"{rate:g}") for name, rate in found.rates.items()]
    return Report("Compositions, compared", of_gains(rules[0], signs), sections, rates, command)


def _yardsticks(found: Gains, texts: Sequence[str]) -> Grid:
    rows = [
        (
            one.name if one.members is None else f"{one.name}, beside {one.members}",
            [
                f"{one.layers}",
                *costs_cells(one.costs),
                *(f"{statistics.mean(one.bits_per_byte[t]):.3f}" if one.bits_per_byte.get(t) else "" for t in texts),
            ],
        )
        for one in found.yardsticks
    ]
    return Grid(["", "blocks", *COSTS, *texts], rows)


def _sign(against: Against) -> int:
    return 0 if not against.significant else -1 if against.change < 0 else 1


def _against(other: Against) -> Cell:
    mark = tint(_sign(other), other.change)
    return Cell(f"{other.change:+.1%}", f"{statistics.mean(other.bits_per_byte):.3f}", tint=mark)


def _drawing(figure: Any, name: str, title: str) -> Drawing:
    return Drawing(as_svg(figure, name, title, "The tables have the values."))
