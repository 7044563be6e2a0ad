"""Grow and join language models on a frozen core.

The names below are imported when they are first used, so that ``treering --help`` does not wait for PyTorch.
transformers' Auto classes know compositions from here on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treering import registration
from treering.lazy import attributes

if TYPE_CHECKING:
    from treering.backbone import PRESETS as PRESETS
    from treering.backbone import dock as dock
    from treering.composition import compose as compose
    from treering.composition import compose_directories as compose_directories
    from treering.composition import load_model as load_model
    from treering.corpus import prepare as prepare
    from treering.evaluation import document_losses as document_losses
    from treering.evaluation import explain as explain
    from treering.evaluation import generate as generate
    from treering.growth import grow as grow
    from treering.tokenizer import load as load_tokenizer  # noqa: F401
    from treering.training import train_expert as train_expert

__version__ = "0.1.0"

_HOMES = {
    "PRESETS": "backbone",
    "dock": "backbone",
    "compose": "composition",
    "compose_directories": "composition",
    "load_model": "composition",
    "prepare": "corpus",
    "document_losses": "evaluation",
    "explain": "evaluation",
    "generate": "evaluation",
    "grow": "growth",
    "load_tokenizer": "tokenizer:load",
    "train_expert": "training",
}


__getattr__ = attributes("treering", _HOMES)
registration.register()


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
