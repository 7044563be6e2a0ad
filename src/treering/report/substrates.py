"""The page that shows the rows of a substrate on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from treering.report.figures import as_svg, scatter
from treering.report.page import Drawing, Grid, Report, Section
from treering.report.takeaways import of_neighbours


def map_report(
    points: Mapping[str, Sequence[tuple[float, float]]],
    own: float,
    chance: float,
    facts: Sequence[tuple[str, str]],
    command: str,
) -> Report:
    """The page of ``treering substrate map``.

    Args:
        points: of each script, where its rows lie; ``own`` and ``chance``: see ``treering.substrate.with_own_nearest``.
    """
    ordered = dict(sorted(points.items(), key=lambda entry: -len(entry[1])))
    rows = sum(map(len, ordered.values()))
    figure = as_svg(
        scatter(ordered), "map", "Rows of the substrate on a plane", "A point for each token, marked by its script."
    )
    counts = Grid(["script", "rows"], [(script, [f"{len(placed):,}"]) for script, placed in ordered.items()])
    return Report(
        "A substrate's rows, by script",
        of_neighbours(own, chance, rows),
        [
            Section(
                "On a plane",
                [
                    Drawing(
                        figure,
                        "By t-SNE: what is near in the rows is near here; distances between groups, and their sizes, "
                        "mean nothing. The sentence above is about the rows themselves, all of their numbers.",
                    ),
                    counts,
                ],
            )
        ],
        facts,
        command,
    )
