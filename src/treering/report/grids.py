"""Results as tables of a page: who needs how many bits, what joining changed, what models can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treering.report.page import Cell, Grid
from treering.report.takeaways import Found

BITS = "bits per byte"
UNIFORM = "uniform"
"""How the name of the baseline that knows nothing begins."""


def plain_label(model: str, rule: str | None) -> str:
    """A model's name, with the rule that joins it if there is one."""
    return f"{model}, {rule}" if rule else model


def score_grid(
    rows: Sequence[Mapping[str, Any]],
    label: Callable[[str, str | None], str] = plain_label,
    names: Mapping[str, str] | None = None,
) -> Grid:
    """Models down, texts across: bits per byte and their interval, the ground stronger the fewer a text takes.

    Args:
        rows: as every ``eval`` command has them; yardsticks (`is_yardstick`) are not marked.
        names: of the texts, where they are not what the rows call them.
    """
    texts = {row["text"]: row["documents"] for row in rows}
    known = {text: [r["bits_per_byte"] for r in rows if r["text"] == text and not is_yardstick(r)] for text in texts}
    found = {(row["model"], row["rule"], row["text"]): row for row in rows}

    def cell(model: str, rule: str | None, text: str) -> Cell | str:
        if (model, rule, text) not in found:
            return ""
        row, values = found[model, rule, text], known[text]
        value, spread = row["bits_per_byte"], f"{row['low']:.3f} … {row['high']:.3f}" if row["documents"] > 1 else ""
        if is_yardstick(row) or len(values) < 2:
            return Cell(f"{value:.3f}", spread)
        good = (max(values) - value) / ((max(values) - min(values)) or 1.0)
        return Cell(f"{value:.3f}", spread, value == min(values), good)

    return Grid(
        [
            "",
            *(
                f"{(names or {}).get(text, text)} ({count:,} document{'s' * (count != 1)})"
                for text, count in texts.items()
            ),
        ],
        [
            (label(model, rule), [cell(model, rule, text) for text in texts])
            for model, rule in dict.fromkeys((row["model"], row["rule"]) for row in rows)
        ],
        "Bits per byte: fewer are better. Below each its 95% interval over documents. The stronger the ground, the "
        "better among the models of a column; the best in bold.",
    )


def is_yardstick(row: Mapping[str, Any]) -> bool:
    """Whether a row is no model's: of the baseline that knows nothing, or of the choice of who turns out best."""
    return row["model"].startswith(UNIFORM) or row["model"] == "oracle"


def change_grid(differences: Sequence[Mapping[str, Any]]) -> Grid:
    """Rules down, an expert on a text across: what joining changed, with its interval; green a gain, red a loss."""
    columns = list(dict.fromkeys((d["text"], d["expert"], d["own"]) for d in differences))
    found = {(d["rule"], d["text"], d["expert"]): as_found(d) for d in differences}
    rules = dict.fromkeys(d["rule"] for d in differences)
    return Grid(
        ["", *(f"{text}, against {'' if own else 'the best, '}{expert}" for text, expert, own in columns)],
        [(rule, [change_cell(found[rule, text, expert]) for text, expert, _ in columns]) for rule in rules],
        "Change of bits per byte from the expert's alone, on the same documents, with the 95% interval of a paired "
        "bootstrap: below 0, joining gains (green); above, it costs (red); no ground where the interval holds 0.",
    )


def as_found(change: Mapping[str, Any]) -> Found:
    """A difference of ``treering.evaluation`` as sentences are made of it."""
    return Found(change["change"], change["low"], change["high"], change["documents"])


def change_cell(found: Found) -> Cell:
    """A change in a table."""
    return Cell(f"{found.change:+.1%}", found.interval, tint=found.tint)


def ability_grid(found: Sequence[Mapping[str, Any]]) -> Grid:
    """Models down, measures of each text across, with their intervals; the best of a column in bold."""
    columns = list(dict.fromkeys((a["text"], a["measure"], a["count"]) for a in found))
    cells = {(a["model"], a["text"], a["measure"]): a for a in found}
    models = list(dict.fromkeys(a["model"] for a in found))

    def cell(model: str, text: str, measure: str) -> Cell | str:
        if (model, text, measure) not in cells:
            return ""
        own = cells[model, text, measure]
        others = [a["value"] for a in found if (a["text"], a["measure"]) == (text, measure)]
        form, best = (".3f", min(others)) if measure == BITS else (".1%", max(others))
        note = f"{own['low']:{form}} … {own['high']:{form}}" if own["count"] > 1 else ""
        return Cell(f"{own['value']:{form}}", note, min(others) < max(others) and own["value"] == best)

    return Grid(
        ["", *(f"{text}: {measure} ({count:,})" for text, measure, count in columns)],
        [(model, [cell(model, text, measure) for text, measure, _ in columns]) for model in models],
        "Below each its 95% interval over documents or questions. Continuation and recall are choices among four: "
        "chance is 25%.",
    )


def upright(grid: Grid) -> Grid:
    """With rows and columns exchanged if it has more columns: a page scrolls down more readily than across."""
    corner, *head = grid.head
    if len(head) <= len(grid.rows):
        return grid
    columns = zip(*(cells for _, cells in grid.rows), strict=True)
    return Grid([corner, *(name for name, _ in grid.rows)], list(zip(head, columns, strict=True)), grid.note)
