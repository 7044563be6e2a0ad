"""Compositions are known to transformers' Auto classes as soon as ``treering`` is imported, and cost nothing until one
is loaded.

transformers has no way for other packages to name themselves, and importing it, or ``treering.composition``, takes
seconds that ``treering --help`` has no use for. So its Auto classes are given a stand-in for the configuration, at once
if they are imported already, else when they are; loading a composition then imports the real one, which registers
itself and the model in the stand-in's place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPE = "treering_composition"
CODE, LOADER = "treering.composition.modeling_treering", "modeling_treering.py"
"""The module whose source lies in a composition's directory, for those who have transformers alone; its name there."""
AUTO_MAP = {
    "AutoConfig": "modeling_treering.CompositionConfig",
    "AutoModelForCausalLM": "modeling_treering.ComposedModel",
}
"""What a composition's ``config.json`` says of it."""
_AUTO = "transformers.models.auto.configuration_auto"


class CompositionConfig:
    """Stands for `treering.composition.CompositionConfig` until there is need of it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _imported()(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As of any configuration."""
        return _imported().from_dict(*args, **kwargs)


def _imported() -> Any:
    from treering.composition import CompositionConfig

    return CompositionConfig


def register() -> None:
    """Let transformers' Auto classes know compositions, now or when they are imported."""
    if _AUTO in sys.modules:
        _register(sys.modules[_AUTO])
    else:
        sys.meta_path.insert(0, _Importer())


def _register(auto: ModuleType) -> None:
    auto.AutoConfig.register(MODEL_TYPE, CompositionConfig)


class _Importer:
    """Finds the module of `_AUTO` as everybody does, and has compositions registered once it has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            loader: Any = spec.loader
            run = loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register(module)

            loader.exec_module = run_and_register
        return spec
