"""Experts in, composed model out; what does not fit together is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from treering import backbone
from treering.backbone import Standing, keeps_keys_and_values
from treering.composition.adapters import merged
from treering.composition.arrangement import arrange
from treering.composition.bases import require_one_base
from treering.composition.configuration import CompositionConfig, expert_config
from treering.composition.fingerprints import record_substrates
from treering.composition.model import ComposedModel
from treering.composition.parts import path
from treering.composition.rules import Rule
from treering.composition.schema import expert_name
from treering.composition.specs import DEFAULT_RULE, rule
from treering.composition.tree import Tree
from treering.errors import TreeringError


def compose(
    experts: Mapping[str, PreTrainedModel],
    rule_name: str = DEFAULT_RULE,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    across_substrates: bool = False,
) -> ComposedModel:
    """Join experts that stand on one frozen substrate, or at least share a vocabulary.

    Args:
        experts: models by name; a PEFT adapter's is merged with it, in a copy.
        rule_name: how their distributions are joined, as `treering.composition.rule` reads it.
        records: by expert's name, what else its record in the configuration shall say (weight, origin, licence …).
        across_substrates: allow experts on different substrates, and models that Treering did not dock. All that
            joining at the output needs is that an ID means the same token to all; of models that name no tokenizer in
            their configuration, the caller must know that.

    Raises:
        TreeringError: no expert, a name that cannot be a file's, an adapter that cannot be merged, a composition as an
            expert, one that keeps no keys and values, one whose weights are not finite, a rule that does not fit,
            weights that are no prior; experts that name one substrate but hold different matrices; experts on
            different tokenizers; and unless ``across_substrates``: an expert that Treering did not dock, experts on
            different substrates (both fingerprints are named), or a substrate that was trained, which no fingerprint
            stands for.
    """
    rule(rule_name)
    if not experts:
        raise TreeringError("A composition needs at least one expert.")
    experts = {name: merged(name, expert) for name, expert in experts.items()}
    for name, expert in experts.items():
        expert_name(name)
        require_single(name, expert)
        _require_cache(name, expert)
        require_finite(name, expert)
    substrates = {name: substrate_of(expert) for name, expert in experts.items()}
    require_unchanged(experts, substrates)
    wholes = {name: expert.state_dict() for name, expert in experts.items()}
    described: list[dict[str, Any]] = []
    for name, expert in experts.items():
        given = {"name": name, "weight": 1.0} | dict((records or {}).get(name, {}))
        own = {"substrate": substrates[name], "path": path(expert.config, wholes[name]), "config": _portable(expert)}
        described.append(given | own)
    require_fit(described, across_substrates)
    config = describe(described)
    with init_empty_weights(include_buffers=False):  # the experts' own tensors are put in place, never copied
        composed = ComposedModel(config)
    weights = arrange(config.tree, config.experts, _in_one_precision(config.tree, wholes))
    weights |= {target: weights[source] for target, source in composed.all_tied_weights_keys.items()}
    composed.load_state_dict({key: value.detach() for key, value in weights.items()}, assign=True)
    for name, joined in composed.named_experts():
        stems: list[Any] = [composed.trunks[key] for key in config.tree.places[name].trunks]
        for part in (joined, *stems):
            part.set_attn_implementation(experts[name].config._attn_implementation)
    composed.tie_weights()
    record_substrates(composed.config, composed.shards())
    return composed.eval().use(rule_name)


def describe(
    records: Sequence[Mapping[str, Any]], rule_name: str = DEFAULT_RULE, fusion: Mapping[str, Any] | None = None
) -> CompositionConfig:
    """The configuration of a composition, which follows from its experts' records, its rule, and what was fitted.

    Raises:
        TreeringError: there is no such rule, or the weights are no prior.
    """
    first, substrates = expert_config(records[0]), {record["substrate"] for record in records}
    return CompositionConfig(
        experts=[{**record, "weight": float(record["weight"])} for record in records],
        rule=str(rule(rule_name)),
        fusion=dict(fusion) if fusion else None,
        treering=first.treering if len(substrates) == 1 and None not in substrates else None,
        bos_token_id=first.bos_token_id,
        eos_token_id=first.eos_token_id,
        pad_token_id=first.pad_token_id,
    )


def require_fitted(fusion: Mapping[str, Any] | None, chosen: Rule) -> None:
    """Refuse a rule that would pass for fitted although nothing has been.

    Args:
        fusion: what was fitted, as the composition's configuration says.

    Raises:
        TreeringError: the rule has to be fitted to the experts of this composition first.
    """
    if "hidden" in chosen.needs and not (fusion or {}).get(chosen.name):
        raise TreeringError(
            f"The rule {chosen.name} has to be fitted to the experts of a composition first: "
            f"treering compose fit DIR --rule {chosen.name}."
        )


def unfitted(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The experts' records without weights that were fitted to all of them together."""
    return [record | ({"weight": 1.0} if "weighted" in (config.fusion or {}) else {}) for record in config.experts]


def outliving(config: PreTrainedConfig, chosen: str | None, whose: object) -> str:
    """The rule of a composition after its experts changed.

    Raises:
        TreeringError: it depends on what was fitted to the experts before.
    """
    known = rule(chosen or config.rule)
    fitted_weights = chosen is None and known.name == "weighted" and "weighted" in (config.fusion or {})
    if "hidden" in known.needs or fitted_weights:
        raise TreeringError(
            f"The rule {known.name} is fitted to all experts of a composition together, so what {whose} has for it "
            f"cannot stay when they change. Name a rule that joins them afterwards, such as {DEFAULT_RULE} "
            "(--rule); to have this one again, fit it again: treering compose fit."
        )
    return str(known)


def require_fit(records: Sequence[Mapping[str, Any]], across_substrates: bool) -> None:
    """Refuse experts whose records say that they do not fit together; see `compose`.

    Raises:
        TreeringError: they stand on different tokenizers, or without ``across_substrates`` on different substrates,
            or on trunks that should be one (see ``treering.composition.bases``).
    """
    standings = {record["name"]: backbone.standing(expert_config(record)) for record in records}
    _require_one_tokenizer(standings)
    if not across_substrates:
        require_one_base(records)
        if any(standings.values()) or not _have_one_embedding(records):
            _require_one_substrate(standings)


def _have_one_embedding(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all read tokens as the same vectors: so an ID is the same token to all, whoever made them."""
    embeddings = {(record.get("path") or {}).get("embedding") for record in records}
    return len(embeddings) == 1 and None not in embeddings


def _in_one_precision(grown: Tree, wholes: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    """The experts' tensors, those of experts on one trunk in the widest precision that one of them has."""
    alike = dict(wholes)
    for trunk in grown.trunks.values():
        tensors = [tensor for name in trunk.experts for tensor in alike[name].values() if tensor.is_floating_point()]
        widest = reduce(torch.promote_types, {tensor.dtype for tensor in tensors})
        for name in trunk.experts:
            alike[name] = {k: t.to(widest) if t.is_floating_point() else t for k, t in alike[name].items()}
    return alike


def substrate_of(expert: PreTrainedModel) -> str | None:
    """The fingerprint of the frozen substrate that an expert reads from, or None if the embedding is its own."""
    own = backbone.standing(expert.config)
    return own.fingerprint if own and own.frozen else None


def _portable(expert: PreTrainedModel) -> dict[str, Any]:
    """An expert's configuration without traces of this machine, and with the precision of its weights."""
    config = expert.config.to_dict() | {"dtype": str(expert.dtype).removeprefix("torch.")}
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def require_single(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """Refuse a composition in an expert's place.

    Raises:
        TreeringError: the model is a composition; its experts are named.
    """
    if isinstance(model, ComposedModel):
        inside = ", ".join(record["name"] for record in model.config.experts)
        raise TreeringError(f"{name} is a composition, of {inside}. Join its experts, from their own directories.")
    return model


def _require_cache(name: str, expert: PreTrainedModel) -> None:
    """Refuse a family whose past does not fit into a common cache; it would silently forget it."""
    if not keeps_keys_and_values(expert):
        raise TreeringError(
            f"{name} is a {expert.config.model_type} model, which keeps no keys and values of what it has read, as the "
            "common cache of a composition needs. Join models with attention."
        )


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


def require_unchanged(experts: Mapping[str, PreTrainedModel], substrates: Mapping[str, str | None]) -> None:
    """Refuse embeddings that differ although they bear one fingerprint.

    Args:
        substrates: by expert's name, the fingerprint of the frozen substrate that it names; see `substrate_of`.

    Raises:
        TreeringError: they do; says who has which.
    """
    for fingerprint in set(substrates.values()) - {None}:
        groups: list[tuple[Tensor, list[str]]] = []
        for name in (name for name, own in substrates.items() if own == fingerprint):
            own = backbone.embedding(experts[name]).weight
            alike = next((names for matrix, names in groups if torch.equal(matrix, own)), None)
            if alike is None:
                groups.append((own, [name]))
            else:
                alike.append(name)
        if len(groups) > 1:
            raise TreeringError(unequal([names for _, names in groups]))


def unequal(groups: Sequence[Sequence[str]]) -> str:
    """What to say of those who name one substrate, in groups of one matrix each; nobody knows who is right."""
    holders = "\n".join(f"  one matrix: {', '.join(names)}" for names in groups)
    return (
        f"{', '.join(name for names in groups for name in names)} name one substrate in config.json, but hold "
        f"different matrices:\n{holders}\nOne was changed after docking, by fine-tuning its embedding, say. "
        "Compare them with the directory of the substrate, and train the one that differs on it again."
    )


def require_finite(name: str, expert: PreTrainedModel) -> None:
    """Refuse weights that are no numbers: one NaN makes all that any expert says of a text NaN.

    Raises:
        TreeringError: there are some; names their tensor.
    """
    for key, tensor in expert.state_dict().items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise TreeringError(
                f"{name} cannot be joined: {tensor.numel() - int(finite.sum()):,} of the {tensor.numel():,} numbers in "
                f"its {key} are infinite or no numbers (NaN). Its training diverged; train it again at a lower rate, "
                "or from a checkpoint before that."
            )
