"""Experts that become one model after training, by joining their output distributions (paper section 4)."""

from treering.composition.directory import compose_directories, load_model
from treering.composition.model import ComposedModel, CompositionConfig, compose
from treering.composition.rules import RULES, Rule, register, rule

__all__ = [
    "RULES",
    "ComposedModel",
    "CompositionConfig",
    "Rule",
    "compose",
    "compose_directories",
    "load_model",
    "register",
    "rule",
]
