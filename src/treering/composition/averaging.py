"""One model from several that went on from the same weights, each with its own text: the mean of their weights.

A composition of n experts costs what n models cost; their mean costs what one does, and is a plain checkpoint. It is
mostly better than each of them where all began as one model and none went far from it (federated averaging, McMahan et
al. 1602.05629; model soups, Wortsman et al. 2203.05482; measured in docs/joining.md). Models that began differently
have no such mean: what one block does in one of them another does in the next.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition.joining import require_finite, require_single, require_unchanged, substrate_of
from treering.composition.loading import load_model
from treering.composition.provenance import provenance
from treering.composition.schema import Training
from treering.composition.vocabulary import require_same_tokenizer, tokenizer_of
from treering.errors import TreeringError
from treering.location import locate
from treering.output import explain_full_disk, require_new, staged_directory, write_file
from treering.publishing.card import write_card
from treering.reading import printable

NOT_COMPARED = frozenset(("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"))
"""Of a configuration, what models of one mean may say differently."""


class Part(NamedTuple):
    """A model in a mean, with its weight there, above 0."""

    name: str
    model: PreTrainedModel
    weight: float


def average(
    models: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    weights: Mapping[str, float] | None = None,
    any_beginning: bool = False,
) -> PreTrainedModel:
    """Write the mean of models' weights into ``output``, with their tokenizer, a record of whose it is, and a card.

    Two models are in memory at a time.

    Args:
        models: directories or hub:NAME, by the names that the record shall have.
        weights: by name, of a model in the mean, relative to the others' (1).
        any_beginning: allow models whose records do not say that they began as one.

    Raises:
        TreeringError: fewer than two models, a weight of none of them, or one that is no number above 0; a model that
            cannot be loaded, or is a composition; see `mean`; different tokenizers; unless ``any_beginning``, records
            that do not say that the models began as one; or the output exists.
    """
    require_new(output)
    shares = _shares(models, weights or {})
    known = {name: provenance(locate(place)) for name, place in models.items()}
    if not any_beginning:
        require_one_beginning({name: record["training"] or {} for name, record in known.items()})
    read: dict[str, PreTrainedTokenizerFast] = {}

    def loaded(name: str, place: str | os.PathLike[str]) -> Part:
        model = require_single(name, load_model(place))
        read[name] = tokenizer_of(place, model)
        require_same_tokenizer(read)
        return Part(name, model, shares[name])

    whole = mean(loaded(name, place) for name, place in models.items())
    whole.config._name_or_path = ""  # what is recorded of it may be published
    with staged_directory(output) as staging, explain_full_disk(staging.parent):
        whole.save_pretrained(staging)
        tokenizers.save(next(iter(read.values())), staging)
        write_file(staging / "training.json", json.dumps({"origin": _origin(known, shares)}, indent=2))
        write_card(staging)
    return whole


def mean(parts: Iterable[Part]) -> PreTrainedModel:
    """The weighted mean of models' parameters, Σ wᵢ·θᵢ / Σ wᵢ, in the first of the models.

    It is taken in float32 at least, and left in the widest precision that one of them has. What all have alike, such as
    a frozen substrate, stays as it is to the bit.

    Args:
        parts: at least one. No more than two models are kept, if whoever gives them keeps none.

    Raises:
        TreeringError: models of different shapes, substrates or trunks; one whose weights are packed, or no numbers;
            embeddings that differ although they are said to be one substrate.
    """
    given = iter(parts)
    first = next(given)
    _require_numbers(first)
    precision, total = first.model.dtype, first.weight
    whole: Any = first.model
    whole = whole.to(torch.promote_types(precision, torch.float32))
    for part in given:
        _require_numbers(part)
        _require_one_shape(first, part)
        precision, total = torch.promote_types(precision, part.model.dtype), total + part.weight
        other: Any = part.model
        whole, other = (model.to(torch.promote_types(precision, torch.float32)) for model in (whole, other))
        both = {first.name: whole, part.name: other}
        require_unchanged(both, {name: substrate_of(model) for name, model in both.items()})
        own = dict(other.named_parameters())
        for name, parameter in whole.named_parameters():
            # A step towards it instead of a sum: between equal numbers it stays where it is.
            parameter.data.lerp_(own[name].data, part.weight / total)
        del part, other, both, own  # before the next one comes
    return whole.to(precision)


def require_one_beginning(trainings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse models whose training records do not say that they went on from the same weights.

    Args:
        trainings: by model's name, its ``training.json``.

    Raises:
        TreeringError: one went on from no model, has blocks that began at random, or went on from another.
    """
    begun: dict[str, str] = {}
    for name, training in trainings.items():
        origin = Training.model_validate(training).origin
        if origin.weights is None:
            raise TreeringError(
                f"{name} went on from no other model, as far as its training.json tells. Models that began differently "
                "have no mean that is of use: join them (treering compose), or train each from one common model "
                "(treering train … --start COMMON). If you know that they began as one: --any-beginning."
            )
        if origin.growth and (fresh := [stage.new for stage in origin.growth.plan.stages if stage.new]):
            raise TreeringError(
                f"{name} has new blocks ({', '.join(fresh)}), which began at random, in each model otherwise. "
                "Branches have a mean where their blocks are copies of their base's (treering grow branch … --set "
                "plan.from=N). If you know that they began as one: --any-beginning."
            )
        begun[name] = origin.weights
    (first, its), *others = begun.items()
    for name, digest in others:
        if digest != its:
            raise TreeringError(
                f"{first} and {name} went on from different models: their training.json name weights {its[:12]}… and "
                f"{digest[:12]}…. Train each from one common model (treering train … --start COMMON)."
            )


def _shares(models: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each model in the mean; they sum to 1."""
    if len(models) < 2:
        raise TreeringError(f"A mean needs at least two models, not {len(models)}.")
    for name, weight in weights.items():
        if name not in models:
            raise TreeringError(f"There is no model {printable(repr(name))}. There are: {', '.join(models)}.")
        if not 0 < weight < math.inf:
            raise TreeringError(f"The weight of {name} is {weight:g}; it has to be a number above 0.")
    given = {name: weights.get(name, 1.0) for name in models}
    return {name: weight / sum(given.values()) for name, weight in given.items()}


def _require_numbers(part: Part) -> None:
    """Refuse a model whose weights have no mean; see `mean`."""
    if not all(parameter.is_floating_point() for parameter in part.model.parameters()):
        raise TreeringError(f"The weights of {part.name} are quantised, and have no mean. Give it as it was before.")
    require_finite(part.name, part.model)


def _require_one_shape(first: Part, other: Part) -> None:
    """Refuse models that no mean can be taken of; see `mean`."""
    ours, theirs = (_shape(part.model) for part in (first, other))
    # In the configurations' order: what they say explains what their tensors are.
    if wrong := [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]:
        told = "; ".join(f"{key}: {ours.get(key)} and {theirs.get(key)}" for key in wrong[:5])
        raise TreeringError(
            f"{first.name} and {other.name} are no models of one kind, and have no mean: {printable(told, 500)}"
        )


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    """What models of one mean have alike: their configuration, and the names and shapes of their parameters."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in NOT_COMPARED}
    if grown := config.get("treering_trunk"):
        config["treering_trunk"] = grown | {"base": ""}  # which its owner may have named
    return config | {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _origin(known: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float]) -> dict[str, Any]:
    """What a mean is made from, as the records of its models tell."""
    origins = [(record["training"] or {}).get("origin") or {} for record in known.values()]
    alike = {
        field: origins[0][field]
        for field in ("substrate", "start")
        if origins[0].get(field) and all(origin.get(field) == origins[0][field] for origin in origins)
    }
    data = [record["data"] or {} for record in known.values()]
    read = [source for own in data for source in own.get("sources", [])]
    sources = [source for place, source in enumerate(read) if source not in read[:place]]  # owners may share some
    told = ("origin", "licence", "training")
    return alike | {
        "average": [
            {"name": name, "share": shares[name]} | {field: record[field] for field in told}
            for name, record in known.items()
        ],
        "data": {"tokenizer": data[0].get("tokenizer"), "sources": sources},
        "sources": [source["name"] for source in sources],
    }
