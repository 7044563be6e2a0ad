"""What is told of the default plan before it runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from treering.backbone import gpt_neox
from treering.growth import PLANS
from treering.growth.cost import count, shape_of
from treering.growth.plan import steps
from treering.growth.recipe import as_plan
from treering.growth.worth import COPIED, worth_of_copied
from treering.training import Backbone


def test_tokens_are_counted_for_each_parameter_of_the_whole():
    """Of the study's own model: 109,056 parameters, 58,240 of them at once (docs/results.md)."""
    backbone = replace(Backbone(preset="tiny", d_model=32).shape(), vocab_size=1024)
    placed = steps(as_plan(PLANS["copied-6"]))
    costs = count(placed, [900_000, 2_100_000], shape_of(gpt_neox(backbone), 128))
    told = worth_of_copied(costs)
    assert told.startswith("27.5 tokens for each of 109,056 parameters.") and costs[-1].active == 58_240
    assert "at 5 it was 9.4% worse than two blocks trained all along and 8.7% worse than all blocks at once" in told
    assert "at 28 it was 2.2% better than two blocks trained all along and 5.3% worse than all blocks at once" in told


def test_what_is_told_is_what_the_study_found():
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("|")}
    bits = {name: float(found[0]) for name, row in rows.items() if (found := re.findall(r"(\d\.\d{3})\*{0,2} \(", row))}
    few, many = COPIED
    for known, grown, shallow, whole in (
        (few, "grown, copied, few tokens", "shallow, few tokens", "monolithic, few tokens"),
        (many, "grown, copied (the default)", "shallow, 2 blocks", "monolithic, 6 blocks"),
    ):
        assert known.shallow == round(bits[grown] / bits[shallow] - 1, 3)
        assert known.whole == round(bits[grown] / bits[whole] - 1, 3)
