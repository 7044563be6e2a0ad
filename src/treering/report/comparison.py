"""The page that shows models side by side."""

from __future__ import annotations

from datetime import date

from treering import __version__
from treering.evaluation.comparison import Comparison, by_subject, goodness, sentence, told
from treering.report.figures import as_svg, heat_map
from treering.report.page import render


def comparison_page(comparison: Comparison, command: str) -> str:
    """The comparison as one self-contained page.

    Args:
        command: that makes it again.
    """
    models = list(dict.fromkeys(cell["model"] for cell in comparison.cells))
    subjects, good = by_subject(comparison.cells), goodness(comparison.cells)
    known = sum(pair["better"] != "unknown" for pair in comparison.pairs)
    names = [subject if measure == "bits per byte" else f"{subject}, {measure}" for subject, measure in subjects]
    figure = heat_map(
        models,
        names,
        [
            [(own[m]["value"], good[model, subject, measure]) for (subject, measure), own in subjects.items()]
            for m, model in enumerate(models)
        ],
    )
    return render(
        "compare",
        version=__version__,
        date=date.today().isoformat(),
        models=models,
        lead=f"{len(models)} models on {len(subjects)} measures: {known} of {len(comparison.pairs)} comparisons tell "
        "one from the other.",
        figure=as_svg(figure, "heat"),
        values=[
            {
                "subject": subject,
                "measure": measure,
                "count": f"{own[0]['count']:,}",
                "cells": [
                    {
                        "value": f"{cell['value']:.3f}",
                        "interval": f"{cell['low']:.3f} … {cell['high']:.3f}" if cell["count"] > 1 else "",
                        "best": good[cell["model"], subject, measure] == 1,
                    }
                    for cell in own
                ],
            }
            for (subject, measure), own in subjects.items()
        ],
        pairs=[
            {
                "subject": pair["subject"],
                "measure": pair["measure"],
                "difference": told(pair)[0],
                "interval": told(pair)[1],
                "verdict": sentence(pair),
            }
            for pair in comparison.pairs
        ],
        command=command,
    )
