"""One common key–value cache for a composition: the transcript, where the rule needs one, each trunk's layers once,
and then each expert's own.

Everything that reorders, repeats, crops or copies a cache (beam search, assisted decoding) so works on a composition as
on any model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from transformers import Cache, DynamicCache, PreTrainedConfig

from treering.composition.rules import Rule
from treering.composition.states import States
from treering.composition.transcript import Transcript
from treering.errors import TreeringError


class Views(NamedTuple):
    """The parts of a common cache. The layers are shared with it, not copied.

    Attributes:
        trunks, experts: keys and values of each, by key and by name; None if nothing is cached.
        kept: the trunks' states, where the rule lets experts sleep.
    """

    transcript: Transcript | None
    trunks: dict[str, Cache | None]
    experts: dict[str, Cache | None]
    kept: dict[str, States]


def lay_out(
    cache: Cache, trunks: Mapping[str, PreTrainedConfig], experts: Mapping[str, PreTrainedConfig], chosen: Rule
) -> None:
    """Give an empty cache the layers that a rule and the experts' own families ask for, if it has others.

    Layers that are right already stay, with all that was asked of them (to record what they let go of, say).
    """
    layers: list[Any] = [Transcript(len(experts))] * ("evidence" in chosen.needs)
    for config in trunks.values():
        layers += _layers(config)
        layers += [States()] * _sleeps(chosen)
    for config in experts.values():
        layers += _layers(config)
    if [type(layer) for layer in cache.layers] != [type(layer) for layer in layers]:
        cache.layers = layers


def views(
    cache: Cache | None,
    trunks: Mapping[str, PreTrainedConfig],
    experts: Mapping[str, PreTrainedConfig],
    chosen: Rule,
) -> Views:
    """The parts of a common cache, by the configurations of a composition's trunks and of its experts' own blocks.

    An empty cache is laid out first.

    Raises:
        TreeringError: the cache was begun by another kind of rule.
    """
    evidence = "evidence" in chosen.needs
    if cache is None:
        transcript = Transcript(len(experts)) if evidence else None
        return Views(transcript, dict.fromkeys(trunks), dict.fromkeys(experts), {})
    begins = cache.get_seq_length() == 0
    if begins:
        lay_out(cache, trunks, experts, chosen)
    left: list[Any] = list(cache.layers)
    transcript = left.pop(0) if isinstance(left[0], Transcript) else None
    if transcript is not None and begins:
        transcript.learns = chosen.beside
    kept = any(isinstance(layer, States) for layer in left)
    known = transcript is not None and chosen.beside <= transcript.learns
    if evidence != known or kept != (_sleeps(chosen) and bool(trunks)):
        raise TreeringError(f"This cache was begun by another rule than {chosen}: begin a new one.")
    found = Views(transcript, {}, {}, {})
    for key, config in trunks.items():
        found.trunks[key] = _take(left, config)
        if kept:
            found.kept[key] = left.pop(0)
    for name, config in experts.items():
        found.experts[name] = _take(left, config)
    return found


def takes_back(configs: Iterable[PreTrainedConfig]) -> bool:
    """Whether what models of these configurations cache of a text can be cropped; recurrent states cannot."""
    return all(layer.is_croppable for config in configs for layer in _layers(config))


def crop(found: Views, length: int) -> None:
    """Let all parts of a common cache forget what they have of a text beyond so many tokens.

    Who is behind keeps what it has, which `transformers.Cache.crop` would shorten by as much as the others.
    """
    parts: list[Any] = [found.transcript, *found.kept.values(), *found.trunks.values(), *found.experts.values()]
    for part in parts:
        if part is not None:
            part.crop(min(0, length - part.get_seq_length()))


def _sleeps(chosen: Rule) -> bool:
    """Whether a rule lets experts be behind."""
    return chosen.name == "top_k"


def _layers(config: PreTrainedConfig) -> list[Any]:
    return DynamicCache(config=config).layers if config.num_hidden_layers else []


def _take(left: list[Any], config: PreTrainedConfig) -> Cache:
    part, count = DynamicCache(), config.num_hidden_layers
    part.layers, left[:count] = left[:count], []
    return part
