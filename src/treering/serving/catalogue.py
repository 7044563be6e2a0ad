"""The names under which the one model of a server is asked: as it is, by another rule, without some experts."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedModel

from treering.composition import RULES, ComposedModel, variant
from treering.errors import TreeringError
from treering.serving.errors import ApiError

WITHOUT = "-without-"


class Catalogue:
    """What clients may call a model: ``NAME``, and for a composition ``NAME:RULE``, ``NAME-without-EXPERT`` and both.

    Each name has a model of its own, which shares the weights and has its own rule. So nothing is switched between two
    requests, whoever's turn it is.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self.name = name
        self._model = model
        self._variant = lru_cache(maxsize=64)(self._make)
        self.rule: str | None = None
        self.experts: list[str] = []
        self.shared = 0
        """Blocks that all experts have in common."""
        self.rules: list[str] = []
        """Those that join all experts with their default parameters."""
        if isinstance(model, ComposedModel):
            self.rule, self.experts, trunks = str(model.rule), list(model.experts), model.tree.trunks.values()
            self.shared = max((trunk.last for trunk in trunks if len(trunk.experts) == len(model.experts)), default=0)
            self.rules = [rule for rule in RULES if self._has(f"{name}:{rule}")]
        fewer = filter(self._has, [f"{name}{WITHOUT}{expert}" for expert in self.experts])
        self.names = [name, *(f"{name}:{rule}" for rule in self.rules), *fewer]
        """The names that are listed; there are as many as there are parameters of rules and sets of experts."""

    def find(self, name: str) -> PreTrainedModel:
        """The model of a name.

        Raises:
            ApiError: 404, there is none.
        """
        if name == self.name:
            return self._model
        try:
            return self._variant(name)
        except TreeringError as error:
            message = f"The model '{name}' does not exist; this server has '{self.name}'. {error}"
            raise ApiError(404, message, "model_not_found", "model") from error

    def _make(self, name: str) -> ComposedModel:
        if not isinstance(self._model, ComposedModel):
            raise TreeringError("It is a single model, without rules and experts to choose from.")
        experts, colon, rule = name.removeprefix(self.name).partition(":")
        nothing, *without = experts.split(WITHOUT)
        if not name.startswith(self.name) or nothing or bool(colon) != bool(rule):
            raise TreeringError(f"Others are {self.name}:RULE, {self.name}{WITHOUT}EXPERT, and both in this order.")
        return variant(self._model, rule or None, without)

    def _has(self, name: str) -> bool:
        try:
            self.find(name)
        except ApiError:
            return False
        return True
