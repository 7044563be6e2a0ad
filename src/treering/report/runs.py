"""Pages of what was trained, grown and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treering.growth.stages import StageResult
from treering.report.figures import as_svg, by_depth, loss_curves
from treering.report.grids import BITS, ability_grid
from treering.report.page import Drawing, Grid, Report, Section
from treering.report.takeaways import blocks, of_composition, of_growth, of_training

SETTINGS = ("learning_rate", "schedule", "warmup", "batch_tokens", "weight_decay", "precision", "keep", "seed")
"""Of a run's settings, those that a page tells."""


def training_report(name: str, history: Sequence[Mapping[str, Any]], record: Mapping[str, Any], command: str) -> Report:
    """The page of a trained expert.

    Args:
        history: its loss curve; ``record``: its ``training.json``.
    """
    measured = record["measured"]
    validation = [entry for entry in history if "eval_bits_per_byte" in entry]
    reached = [(entry["step"], entry["eval_bits_per_byte"]) for entry in validation]
    return Report(
        f"Training of {name}",
        of_training(
            name,
            reached or [(measured["steps"], measured["validation_bits_per_byte"])],
            measured["tokens"],
            measured["seconds"],
        ),
        [Section("How it learned", [_curve(name, history), _validations(validation)])],
        facts(record),
        command,
    )


def growth_report(
    name: str,
    history: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    stages: Sequence[StageResult],
    abilities: Mapping[int, Sequence[Mapping[str, Any]]],
    command: str,
) -> Report:
    """The page of a model that grew.

    Args:
        abilities: by stage, what was measured after it; of some runs, nothing was.
    """
    names = {stage.number: f"{stage.number}: {blocks(stage.depth)}" for stage in stages}
    bits: dict[str, list[tuple[float, float]]] = {}
    for number in (stages[0].number, stages[-1].number):
        for ability in abilities.get(number, []):
            if ability["measure"] == BITS:
                bits.setdefault(ability["text"], []).append((ability["low"], ability["high"]))
    sections = [Section("How it grew", [_curve(name, history, names), _stages(stages)])]
    if abilities:
        at = {stage.number: place for place, stage in enumerate(stages)}
        found = [{**one, "model": at[n]} for n, own in abilities.items() if n in at for one in own]
        figure = by_depth(found, [blocks(stage.depth) for stage in stages])
        told = [{**one, "model": names[n]} for n, own in abilities.items() if n in at for one in own]
        drawing = Drawing(
            as_svg(
                figure, "depth", "Abilities after each stage", "Each with its 95% interval; the table has the values."
            )
        )
        why = (
            "Each stage goes on from the one before: a deeper model has also read more, so this is not of depth alone."
        )
        sections.append(Section("What it can do, by depth", [why, drawing, ability_grid(told)]))
    return Report(
        f"Growth of {name}",
        of_growth(
            [stage.depth for stage in stages],
            [stage.validation_bits_per_byte for stage in stages],
            {text: (own[0], own[1]) for text, own in bits.items() if len(own) == 2},
        ),
        sections,
        facts(record),
        command,
    )


def composition_report(
    name: str, rule: str, fitted: bool, experts: Sequence[Mapping[str, Any]], command: str
) -> Report:
    """The page of a composition: who is in it. What it is worth, ``treering eval forgetting`` measures.

    Args:
        experts: as ``treering.composition.list_experts`` tells of them.
    """
    rows = []
    for record in experts:
        training = record.get("training") or {}
        measured = training.get("measured") or {}
        sources = [source["name"] for source in (record.get("data") or {}).get("sources", [])]
        reached = measured.get("validation_bits_per_byte")
        rows.append(
            (
                record["name"],
                [
                    f"{record['weight']:g} ({record['share']:.0%})",
                    f"{record['family']}, {record['layers']} × {record['width']}",
                    f"{record['parameters']:,}" if record["parameters"] else "all shared",
                    ", ".join(sources) or "not known",
                    f"{measured['tokens']:,}" if measured.get("tokens") else "",
                    f"{reached:.3f}" if reached else "",
                    record.get("licence") or "not stated",
                ],
            )
        )
    head = ["", "weight", "model", "parameters", "read", "tokens", "validation bits per byte", "licence"]
    prints = [(f"fingerprint of {r['name']}", r["fingerprint"]) for r in experts if r.get("fingerprint")]
    return Report(
        f"Composition {name}",
        of_composition([record["name"] for record in experts], rule, fitted),
        [
            Section(
                "Who is in it",
                [
                    Grid(
                        head,
                        rows,
                        "Validation is each expert's own text, so these columns compare nobody. What joining is worth: "
                        f"treering eval forgetting {name} --data DIR -o forgetting.html",
                    )
                ],
            )
        ],
        [("rule", rule), *prints],
        command,
    )


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run was made of, by its ``training.json``."""
    origin, settings = record.get("origin") or {}, record.get("settings") or {}
    measured = record["measured"]
    told = [(name.replace("_", " "), f"{settings[name]}") for name in SETTINGS if settings.get(name) is not None]
    return [
        ("read", f"{', '.join(map(str, origin.get('sources') or [])) or 'not known'}: {measured['tokens']:,} tokens"),
        ("steps", f"{measured['steps']:,}; the weights are those of step {measured['kept_step']:,}"),
        *told,
        *((name, f"{origin[name]}") for name in ("model", "start", "corpus", "substrate") if origin.get(name)),
        *([("taught by", f"{teacher['name']}, {teacher['share']:.0%}")] if (teacher := origin.get("teacher")) else []),
    ]


def _curve(name: str, history: Sequence[Mapping[str, Any]], stages: Mapping[int, str] | None = None) -> Drawing:
    told = "Bits per byte over millions of tokens." + (" Dotted lines mark where each stage begins." if stages else "")
    return Drawing(as_svg(loss_curves({name: history}, stages), "loss", f"Loss curves of {name}", told))


def _validations(entries: Sequence[Mapping[str, Any]]) -> Grid:
    rows = [(f"{e['step']:,}", [f"{e['tokens']:,.0f}", f"{e['eval_bits_per_byte']:.3f}"]) for e in entries]
    return Grid(["step", "tokens", "validation bits per byte"], rows)


def _stages(stages: Sequence[StageResult]) -> Grid:
    head = ["stage", "blocks", "new", "trained", "trained parameters", "tokens", "seconds", "validation bits per byte"]
    rows = [
        (
            f"{one.number}",
            [
                f"{one.depth}",
                one.new,
                one.train,
                f"{one.active:,}",
                f"{one.tokens:,}",
                f"{one.seconds + one.prefix_seconds:,.0f}",
                f"{one.validation_bits_per_byte:.3f}",
            ],
        )
        for one in stages
    ]
    return Grid(head, rows)
