"""One common key–value cache for all experts: the transcript, where the rule needs one, and then each expert's layers.

Everything that reorders, repeats, crops or copies a cache (beam search, assisted decoding) so works on a composition as
on any model.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Cache, DynamicCache, PreTrainedConfig

from treering.composition.rules import Rule
from treering.composition.transcript import Transcript
from treering.errors import TreeringError


def lay_out(cache: Cache, configs: Sequence[PreTrainedConfig], chosen: Rule) -> None:
    """Give an empty cache the layers that a rule and the experts' own families ask for, if it has others.

    Layers that are right already stay, with all that was asked of them (to record what they let go of, say).
    """
    own = [layer for config in configs for layer in DynamicCache(config=config).layers]
    layers = [Transcript(len(configs))] * ("evidence" in chosen.needs) + own
    if [type(layer) for layer in cache.layers] != [type(layer) for layer in layers]:
        cache.layers = layers


def views(
    cache: Cache | None, configs: Sequence[PreTrainedConfig], chosen: Rule
) -> tuple[Transcript | None, list[Cache | None]]:
    """The transcript, if the rule needs one, and for each expert a view of its own layers in the common cache.

    The layers are shared, not copied. An empty cache is laid out first.

    Raises:
        TreeringError: the cache was begun by another kind of rule.
    """
    evidence = "evidence" in chosen.needs
    if cache is None:
        return Transcript(len(configs)) if evidence else None, [None] * len(configs)
    if cache.get_seq_length() == 0:
        lay_out(cache, configs, chosen)
    transcript = cache.layers[0] if isinstance(cache.layers[0], Transcript) else None
    if evidence != (transcript is not None):
        raise TreeringError(f"This cache was begun by another rule than {chosen}: begin a new one.")
    parts, first = list[Cache | None](), int(evidence)
    for config in configs:
        part, after = DynamicCache(), first + config.num_hidden_layers
        part.layers = cache.layers[first:after]
        parts.append(part)
        first = after
    return transcript, parts
