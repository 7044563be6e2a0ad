"""Pages of what ``treering eval`` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treering.composition import DEFAULT_RULE
from treering.evaluation.kinds import TOGETHER, Kinds, Kinship
from treering.report.figures import as_svg, scores
from treering.report.grids import (
    BITS,
    UNIFORM,
    ability_grid,
    as_found,
    change_cell,
    change_grid,
    is_yardstick,
    plain_label,
    score_grid,
    upright,
)
from treering.report.page import Cell, Drawing, Grid, Report, Section
from treering.report.takeaways import (
    of_abilities,
    of_bits,
    of_bits_alone,
    of_joining,
    of_kinds,
    of_paper,
    of_speaking_together,
)

CHANCE = 0.25
"""Of the choices of ``eval abilities``, which are among four."""

Rows = Sequence[Mapping[str, Any]]
"""Rows as a command's ``--json`` has them."""


def bits_report(rows: Rows, command: str = "") -> Report:
    """The page of ``eval bits``."""
    known = [row for row in rows if not is_yardstick(row)]
    texts: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        texts.setdefault(row["text"], []).append(row)
    best = {}
    for text, own in texts.items():
        first, *others = sorted(own, key=lambda row: row["bits_per_byte"])
        best[text] = first["model"], first["documents"] > 1 and all(first["high"] < other["low"] for other in others)
    fewest = {text: min(row["bits_per_byte"] for row in own) for text, own in texts.items()}
    guesses = [row for row in rows if row["model"].startswith(UNIFORM)]
    guessed = list(dict.fromkeys(r["text"] for r in guesses if r["bits_per_byte"] <= fewest[r["text"]]))
    alone = len({(row["model"], row["rule"]) for row in known}) == 1
    return Report(
        "Bits per byte on held-out text",
        of_bits_alone(known[0]["model"], fewest, guessed) if alone else of_bits(best, guessed),
        [Section("Who knows what", [score_grid(rows), score_drawing(known)])],
        command=command,
    )


def forgetting_report(rows: Rows, differences: Rows, rule: str, command: str = "") -> Report:
    """The page of ``eval forgetting``.

    Args:
        rule: whose effect the takeaway tells; if it was not compared, that of the first one is told.
    """
    compared = list(dict.fromkeys(one["rule"] for one in differences))
    told = rule if rule in compared else compared[0]
    return Report(
        "What joining costs, and what it gains",
        joining_takeaway(differences, told),
        [
            Section("What joining changed", [change_grid(differences)]),
            Section("Who knows what", [score_grid(rows), score_drawing(rows)]),
        ],
        command=command,
    )


def joining_takeaway(differences: Rows, rule: str) -> str:
    """What a rule did, in one sentence."""
    ours = [one for one in differences if one["rule"] == rule]
    return of_joining(
        rule,
        {(one["expert"], one["text"]): as_found(one) for one in ours if one["own"]},
        {one["text"]: as_found(one) for one in ours if not one["own"]},
    )


def kinds_report(found: Kinds, command: str = "") -> Report:
    """The page of ``compose kinds``."""
    names = list(found.own)
    cells = {two: _say(pair, found.least) for pair in found.pairs for two in (pair["experts"], pair["experts"][::-1])}
    return Report(
        "Who knows what, and who is of one kind",
        kinds_takeaway(found),
        [
            Section("Who knows what", [score_grid(found.rows), score_drawing(found.rows)]),
            Section(
                "Who is of one kind",
                [
                    together_takeaway(found),
                    Grid(
                        ["", *names],
                        [(name, [cells.get((name, other), "") for other in names]) for name in names],
                        "The say that slow evidence leaves to the one of two that is behind, on that own text of "
                        "either on which it is least, in the middle of its documents: 50% where both know it equally "
                        f"well. In bold from {found.least:.0%} on, which is one kind. Below, the text and the 95% "
                        "interval of the median over its documents.",
                    ),
                    Grid(
                        ["", "own text of", "change by speaking together", "have a say"],
                        _texts(found),
                        f"Change of bits per byte by {TOGETHER} from those by {DEFAULT_RULE}, with the 95% interval "
                        "of a paired bootstrap. Who has no own text among these has the one on which it is best.",
                    ),
                ],
            ),
        ],
        command=command,
    )


def kinds_takeaway(found: Kinds) -> str:
    """Who is of one kind, in one sentence."""
    return of_kinds(found.kinds, [pair["experts"] for pair in found.doubtful])


def together_takeaway(found: Kinds) -> str:
    """What it is worth to let them speak together, in one sentence."""
    several = {one["text"]: as_found(one) for one in found.gains if len(found.heard[one["text"]]) > 1}
    alone = [text for text, heard in found.heard.items() if len(heard) == 1]
    return of_speaking_together(TOGETHER, DEFAULT_RULE, several, alone)


def _say(pair: Kinship, least: float) -> Cell:
    interval = f", {pair['low']:.0%} … {pair['high']:.0%}" if pair["documents"] > 1 else ""
    return Cell(f"{pair['say']:.0%}", f"{pair['text']}{interval}", pair["say"] >= least)


def _texts(found: Kinds) -> list[tuple[str, list[Cell | str]]]:
    """Of each text, whose own it is, what speaking together changes there, and who has a say."""
    rows: list[tuple[str, list[Cell | str]]] = []
    for one in found.gains:
        own = [name for name, texts in found.own.items() if one["text"] in texts]
        words = [Cell(", ".join(names), prose=True) for names in (own, found.heard[one["text"]])]
        rows.append((one["text"], [words[0], change_cell(as_found(one)), words[1]]))
    return rows


def score_drawing(rows: Rows) -> Drawing:
    """The rows as bars."""
    labelled = [{**row, "model": plain_label(row["model"], row["rule"])} for row in rows]
    svg = as_svg(
        scores(labelled), "scores", "Bits per byte by text and model", "Bars with 95% intervals; values above."
    )
    return Drawing(svg)


def abilities_report(found: Rows, command: str = "") -> Report:
    """The page of ``eval abilities``."""
    choices = [(a["model"], a["low"], CHANCE) for a in found if a["measure"] != BITS]
    models = list(dict.fromkeys(a["model"] for a in found))
    return Report(
        "What small models can do",
        of_abilities(models, choices),
        [Section("Abilities", [upright(ability_grid(found))])],
        command=command,
    )


def tasks_report(rows: Rows, command: str = "") -> Report:
    """The page of ``eval tasks``; intervals are the value ± 1.96 standard errors, as lm-eval has them."""
    asked = [row for row in rows if row["chance"] is not None and row["stderr"] is not None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = list(dict.fromkeys((row["task"], row["measure"]) for row in rows))
    found = {(row["model"], row["task"], row["measure"]): row for row in rows}

    def cell(model: str, task: str, measure: str) -> Cell | str:
        if (model, task, measure) not in found:
            return ""
        row = found[model, task, measure]
        margin = "" if row["stderr"] is None else f"± {1.96 * row['stderr']:.3f}"
        return Cell(f"{row['value']:.3f}", margin)

    def described(row: Mapping[str, Any]) -> tuple[str, list[str]]:
        shots = "" if row["shots"] is None else f"{row['shots']}"
        chance = "" if row["chance"] is None else f"{row['chance']:.3f}"
        count = "" if row["count"] is None else f"{row['count']:,}"
        return f"{row['task']}: {row['measure']}", [count, shots, chance, f"{row['version']}"]

    return Report(
        "lm-eval's tasks",
        of_abilities(
            models,
            [(r["model"], r["value"] - 1.96 * r["stderr"], r["chance"]) for r in asked],
            "on tasks of which it is not known what guessing gives",
        ),
        [
            Section(
                "Scores",
                [
                    Grid(
                        ["", *models],
                        [(f"{task}: {measure}", [cell(m, task, measure) for m in models]) for task, measure in columns],
                        "± 1.96 standard errors of lm-eval's own.",
                    )
                ],
            ),
            Section(
                "The tasks",
                [
                    Grid(
                        ["", "questions", "shots", "chance", "version"],
                        list({f"{r['task']}: {r['measure']}": described(r) for r in rows}.values()),
                    )
                ],
            ),
        ],
        command=command,
    )


def paper_report(rows: Rows, command: str = "") -> Report:
    """The page of ``eval paper``, in per cent; margins are those of the runs, as the paper has them."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    exams = {row["exam"]: row for row in rows}
    found = {(row["model"], row["exam"]): row for row in rows}
    guessed = [row for row in rows if row["chance"] is not None]

    def score(model: str, exam: str) -> Cell | str:
        if (model, exam) not in found:
            return ""
        row = found[model, exam]
        return Cell(f"{row['value']:.2f}", f"± {row['margin']:.2f}" if row["runs"] > 1 else "")

    def unanswered(model: str, exam: str) -> str:
        row = found.get((model, exam))
        return "" if row is None else f"{row['unanswered']:.1%}"

    beside = [name for name in ("chance", "published") if any(row[name] is not None for row in rows)]

    def described(row: Mapping[str, Any]) -> list[str]:
        known = ["" if row[name] is None else f"{row[name]:.2f}" for name in beside]
        return [*known, f"{row['runs']} × {row['samples']:,}"]

    return Report(
        "The paper's own protocol",
        of_paper(
            models,
            [(row["value"] - row["margin"], row["chance"]) for row in guessed if row["runs"] > 1],
            [row["unanswered"] for row in guessed],
        ),
        [
            Section(
                "Scores",
                [
                    Grid(
                        ["", *models, *beside, "questions"],
                        [(exam, [*(score(m, exam) for m in models), *described(row)]) for exam, row in exams.items()],
                        "Per cent, the mean of the runs ± 1.96 of its standard errors over runs, as the paper has it: "
                        "the spread of the draws, not of the questions. Greedy, the first character is the answer; to "
                        "be set beside the paper's figures alone. Standard scores are those of treering eval tasks.",
                    )
                ],
            ),
            *(
                [
                    Section(
                        "What was no answer at all",
                        [
                            Grid(
                                ["", *models],
                                [
                                    (exam, [unanswered(model, exam) for model in models])
                                    for exam in dict.fromkeys(row["exam"] for row in guessed)
                                ],
                                "The share of answers that were no letter, or neither true nor false; they count as "
                                "wrong.",
                            )
                        ],
                    )
                ]
                if guessed
                else []
            ),
        ],
        command=command,
    )
