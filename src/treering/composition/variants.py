"""A composition under another rule, or without some of its experts, on the same weights in memory."""

from __future__ import annotations

import copy
from collections.abc import Collection, Container
from typing import Any

from torch import nn

from treering.composition.joining import describe, outliving, require_fitted, unfitted
from treering.composition.model import ComposedModel, Fusion
from treering.composition.specs import rule
from treering.composition.tree import Tree
from treering.errors import TreeringError


def variant(model: ComposedModel, spec: str | None = None, without: Collection[str] = ()) -> ComposedModel:
    """A composition that stands on the modules of ``model``, and may be asked while that one is.

    Nothing is copied: it takes no memory to speak of, and changes when the weights of ``model`` do. Without some
    experts it is the composition that ``treering compose remove`` would leave, in all that it says.

    Args:
        spec: the rule that joins its experts, as `treering.composition.rule` reads it, instead of the model's.
        without: the names of experts that it has not.

    Raises:
        TreeringError: there is no such rule or no such expert, all would be left out, or the rule has to be fitted to
            just these experts first.
    """
    other = copy.copy(model)
    if without:
        _leave_out(other, set(without), spec)
    else:
        other.config = copy.copy(model.config)
    if spec is None:
        return other
    require_fitted(other.config.fusion, rule(spec))
    return other.use(spec)


def _leave_out(model: ComposedModel, names: set[str], spec: str | None) -> None:
    """Let a composition that shares its modules with another have the other experts alone."""
    if unknown := sorted(names - model.tree.places.keys()):
        raise TreeringError(f"There is no expert {unknown[0]!r}. There are: {', '.join(model.tree.places)}.")
    places = {name: place for name, place in model.tree.places.items() if name not in names}
    if not places:
        raise TreeringError("All experts are left out; at least one has to stay.")
    records = [record for record in unfitted(model.config) if record["name"] in places]
    model.config = describe(records, outliving(model.config, spec, "the composition"))
    trunks = {key: trunk for key, trunk in model.tree.trunks.items() if places.keys() & set(trunk.experts)}
    model.tree = Tree(trunks, places)
    model._modules = dict(model._modules)  # its own from here on; the modules are not
    model.substrates = _among(model.substrates, {place.embedding for place in places.values()})
    model.trunks = _among(model.trunks, trunks)
    model.norms = _among(model.norms, {place.norm for place in places.values()})
    model.heads = _among(model.heads, {place.head for place in places.values()})
    model.experts = _among(model.experts, places)
    model.fusion = Fusion()
    model.use(model.config.rule)


def _among(modules: nn.ModuleDict, names: Container[Any]) -> nn.ModuleDict:
    return nn.ModuleDict({name: module for name, module in modules.items() if name in names})
