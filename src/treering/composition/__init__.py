"""Experts that become one model after training, by joining their output distributions (paper section 4)."""

from treering.composition.directory import compose_directories, load_model
from treering.composition.fitting import Fit, fit
from treering.composition.joining import DEFAULT_RULE, compose
from treering.composition.model import ComposedModel, CompositionConfig
from treering.composition.rules import RULES, Joined, Reading, Rule, register, rule

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "ComposedModel",
    "CompositionConfig",
    "Fit",
    "Joined",
    "Reading",
    "Rule",
    "compose",
    "compose_directories",
    "fit",
    "load_model",
    "register",
    "rule",
]
