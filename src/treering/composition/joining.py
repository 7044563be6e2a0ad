"""Experts in, composed model out; what does not fit together is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedModel

from treering import backbone
from treering.backbone import Standing
from treering.composition.model import ComposedModel, CompositionConfig, substrate_key
from treering.composition.rules import rule
from treering.errors import TreeringError

DEFAULT_RULE = "evidence"
"""Measured best of those that need no fitting (docs/rules.md)."""


def compose(
    experts: Mapping[str, PreTrainedModel],
    rule_name: str = DEFAULT_RULE,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    across_substrates: bool = False,
) -> ComposedModel:
    """Join experts that stand on one frozen substrate, or at least share a vocabulary.

    Args:
        experts: models by name.
        rule_name: how their distributions are joined, as `treering.composition.rules.rule` reads it.
        records: by expert's name, what else its record in the configuration shall say (weight, origin, licence …).
        across_substrates: allow experts on different substrates, and models that Treering did not dock. All that
            joining at the output needs is that an ID means the same token to all; of models that name no tokenizer in
            their configuration, the caller must know that.

    Raises:
        TreeringError: no expert, a name that cannot be a file's, a rule that does not fit; experts on different
            tokenizers; and unless ``across_substrates``: an expert that Treering did not dock, experts on different
            substrates (both fingerprints are named), or a substrate that was trained, which no fingerprint stands for.
    """
    rule(rule_name)
    if not experts:
        raise TreeringError("A composition needs at least one expert.")
    for name in experts:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise TreeringError(f"{name!r} cannot be an expert's name: use letters, digits, '-' and '_'.")
    standings = {name: backbone.standing(expert.config) for name, expert in experts.items()}
    _require_one_tokenizer(standings)
    if not across_substrates:
        _require_one_substrate(standings)
    substrates = {name: own.fingerprint if own and own.frozen else None for name, own in standings.items()}
    _require_unchanged(experts, substrates)
    first = next(iter(experts.values()))
    shared = len(set(substrates.values())) == 1 and None not in substrates.values()
    config = CompositionConfig(
        experts=[
            {"name": name, "weight": 1.0}
            | dict((records or {}).get(name, {}))
            | {"substrate": substrates[name], "config": expert.config.to_dict()}
            for name, expert in experts.items()
        ],
        treering=first.config.treering if shared else None,
        bos_token_id=first.config.bos_token_id,
        eos_token_id=first.config.eos_token_id,
        pad_token_id=first.config.pad_token_id,
    )
    with init_empty_weights(include_buffers=False):  # the experts' own tensors are put in place, never copied
        composed = ComposedModel(config)
    weights: dict[str, Tensor] = {}
    for name, expert in experts.items():
        shared_key = None
        if fingerprint := substrates[name]:
            shared_key = backbone.family(expert.config).embedding + ".weight"
            weights.setdefault(f"substrates.{substrate_key(fingerprint)}.weight", backbone.embedding(expert).weight)
        weights |= {f"experts.{name}.{key}": value for key, value in expert.state_dict().items() if key != shared_key}
    composed.load_state_dict(weights, assign=True)
    composed.tie_weights()
    return composed.eval().use(rule_name)


def _require_one_tokenizer(standings: Mapping[str, Standing | None]) -> None:
    """Refuse experts whose configurations name different tokenizers."""
    named = {name: own for name, own in standings.items() if own is not None}
    for name, own in named.items():
        first_name, first = next(iter(named.items()))
        if own.tokenizer != first.tokenizer:
            raise TreeringError(_difference("tokenizers, and so on different substrates", first_name, first, name, own))


def _require_one_substrate(standings: Mapping[str, Standing | None]) -> None:
    """Refuse experts that do not stand on one frozen substrate."""
    first_name, first = next(iter(standings.items()))
    for name, own in standings.items():
        if own is None or first is None:
            raise TreeringError(
                f"{first_name if first is None else name} names no substrate in its config.json: it was not docked by "
                "Treering, so nothing says that its tokens mean the same as the others'. If they have the same "
                "tokenizer, allow it by --across-substrates (across_substrates=True)."
            )
        if not own.frozen:
            raise TreeringError(
                f"{name} was trained on a trainable embedding, which is no longer the substrate it started from. "
                "Compose experts on a frozen substrate, or allow it by --across-substrates (across_substrates=True)."
            )
        if own != first:
            raise TreeringError(_difference("substrates", first_name, first, name, own))


def _difference(what: str, first_name: str, first: Standing, name: str, own: Standing) -> str:
    way_out = "Train the experts on one substrate"
    if own.tokenizer == first.tokenizer:
        way_out += ", or join them at their output alone by --across-substrates (across_substrates=True)"
    return (
        f"{first_name} and {name} stand on different {what}:\n"
        f"  {first_name}: substrate {first.fingerprint}, tokenizer {first.tokenizer}\n"
        f"  {name}: substrate {own.fingerprint}, tokenizer {own.tokenizer}\n"
        f"{way_out}."
    )


def _require_unchanged(experts: Mapping[str, PreTrainedModel], substrates: Mapping[str, str | None]) -> None:
    """Refuse an embedding that differs from another's of the same fingerprint."""
    matrices: dict[str, Tensor] = {}
    for name, fingerprint in substrates.items():
        if fingerprint is not None:
            own = backbone.embedding(experts[name]).weight
            if not torch.equal(own, matrices.setdefault(fingerprint, own)):
                raise TreeringError(
                    f"{name}'s embedding is not the substrate {fingerprint} that its config.json names: it was changed "
                    "after docking."
                )
