"""The page that shows models side by side."""

from __future__ import annotations

from treering.evaluation.comparison import BITS, Comparison, by_subject, goodness, sentence, told
from treering.report.page import Cell, Grid, Report, Section
from treering.report.takeaways import of_comparison


def comparison_report(comparison: Comparison, command: str) -> Report:
    """The comparison as a page.

    Args:
        command: that makes it again.
    """
    models = list(dict.fromkeys(cell["model"] for cell in comparison.cells))
    subjects, good = by_subject(comparison.cells), goodness(comparison.cells)
    wins, losses = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for subject, measure in subjects:
        pairs = [pair for pair in comparison.pairs if (pair["subject"], pair["measure"]) == (subject, measure)]
        better = [
            pair["first" if pair["better"] == "first" else "second"] for pair in pairs if pair["better"] != "unknown"
        ]
        worse = [
            pair["second" if pair["better"] == "first" else "first"] for pair in pairs if pair["better"] != "unknown"
        ]
        for model in models:
            wins[model] += better.count(model) == len(models) - 1
            losses[model] += model in worse
    values = [
        (
            f"{subject}, {measure} (n = {own[0]['count']:,})",
            [
                Cell(
                    f"{cell['value']:.3f}",
                    f"{cell['low']:.3f} … {cell['high']:.3f}" if cell["count"] > 1 else "",
                    good[cell["model"], subject, measure] == 1,
                    good[cell["model"], subject, measure],
                )
                for cell in own
            ],
        )
        for (subject, measure), own in subjects.items()
    ]
    verdicts = [
        (f"{pair['subject']}, {pair['measure']}", [pair["first"], pair["second"], *told(pair), sentence(pair)])
        for pair in comparison.pairs
    ]
    fewer = " Of bits per byte, fewer are better." if any(measure == BITS for _, measure in subjects) else ""
    return Report(
        "Models compared",
        of_comparison(models, wins, losses, len(subjects)),
        [
            Section(
                "Values",
                [
                    Grid(
                        ["", *models],
                        values,
                        "Below each value the 95% interval of a bootstrap over documents or questions. The stronger "
                        f"the ground, the better among the models of a row; the best in bold.{fewer}",
                    )
                ],
            ),
            Section(
                "Who beats whom",
                [
                    Grid(
                        ["", "first", "second", "difference", "95% interval", "so"],
                        verdicts,
                        "Differences of the first from the second, on the same documents or questions (paired "
                        "bootstrap). A model beats another where the interval excludes 0; of twenty pairs that do not "
                        "differ, one is expected to say so all the same.",
                    )
                ],
            ),
        ],
        command=command,
    )
