"""Experts that become one model after training, by joining their output distributions (paper section 4)."""

from treering.composition.averaging import average
from treering.composition.configuration import CompositionConfig
from treering.composition.cuttings import cut
from treering.composition.description import describe
from treering.composition.directory import (
    add_expert,
    compose_directories,
    fit_directory,
    list_experts,
    remove_expert,
    reweight,
    set_rule,
)
from treering.composition.drawing import draw, require_drawable
from treering.composition.fitting import Fit, fit
from treering.composition.joining import DEFAULT_RULE, compose, require_fitted, require_single
from treering.composition.loading import load_model, running
from treering.composition.model import ComposedModel
from treering.composition.rules import RULES, Joined, Reading, Rule, register
from treering.composition.specs import rule
from treering.composition.speculation import may_speculate, speculative
from treering.composition.variants import variant

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "ComposedModel",
    "CompositionConfig",
    "Fit",
    "Joined",
    "Reading",
    "Rule",
    "add_expert",
    "average",
    "compose",
    "compose_directories",
    "cut",
    "describe",
    "draw",
    "fit",
    "fit_directory",
    "list_experts",
    "load_model",
    "may_speculate",
    "register",
    "remove_expert",
    "require_drawable",
    "require_fitted",
    "require_single",
    "reweight",
    "rule",
    "running",
    "set_rule",
    "speculative",
    "variant",
]
