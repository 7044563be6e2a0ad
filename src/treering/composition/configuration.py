"""What a composition is made of, as its ``config.json`` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from treering.backbone import UNLIMITED, context_length
from treering.composition.parts import is_known
from treering.composition.schema import Composition, check, check_fields
from treering.composition.specs import DEFAULT_RULE
from treering.composition.tree import Tree, tree
from treering.errors import TreeringError
from treering.reading import printable
from treering.registration import MODEL_TYPE


class CompositionConfig(PreTrainedConfig):
    """What a composition is made of.

    Args:
        experts: one record per expert, in order: ``name``, ``config`` (its own configuration), ``substrate`` (the
            fingerprint of the one it reads from, or None for an embedding of its own), ``path`` (the names of its
            parts, see ``treering.composition.parts``; None where they are not known), ``weight`` (of its prior,
            relative to the others'), and whatever is known of its provenance.
        rule: the rule that joins their logits, as `treering.composition.rule` reads it.
        fusion: what was fitted on top of the experts, for which rule and on what; None if nothing was.
        treering: the substrate that all stand on (see ``treering.backbone.Standing``); None if it is not one.
        substrates: by fingerprint, the precision and the SHA-256 of the matrix as it is stored; None if not known.

    Raises:
        TreeringError: something of it cannot be (see ``treering.composition.schema``), as a damaged file's.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        experts: list[dict[str, Any]] | None = None,
        rule: str = DEFAULT_RULE,
        fusion: dict[str, Any] | None = None,
        treering: dict[str, Any] | None = None,
        substrates: dict[str, dict[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {"experts": experts or [], "rule": rule, "fusion": fusion, "treering": treering}
        check(Composition, values | {"substrates": substrates}, "The configuration of the composition")
        check_fields(kwargs, "The configuration of the composition")
        self.experts = experts or []
        self.rule = rule
        self.fusion = fusion
        self.treering = treering
        self.substrates = substrates
        configs = [expert_config(record) for record in self.experts]
        _require_paths(self.experts, configs)
        for derived in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "auto_map"):
            kwargs.pop(derived, None)  # auto_map: whose code the file names is not asked
        # What generation, evaluation and caches ask of any model. Checkpoints of one tokenizer may be padded to
        # different numbers of rows; the tokens are in all of them.
        self.vocab_size = min((config.vocab_size for config in configs), default=0)
        self.hidden_size = configs[0].hidden_size if configs else 0
        grown = self.tree
        self.num_hidden_layers = sum(trunk.last - trunk.first for trunk in grown.trunks.values()) + sum(
            config.num_hidden_layers - place.first for config, place in zip(configs, grown.places.values(), strict=True)
        )
        self.max_position_embeddings = min(map(context_length, configs), default=UNLIMITED)
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def tree(self) -> Tree:
        """What the experts share; see ``treering.composition.tree``."""
        return tree(self.experts)


def _require_paths(records: Sequence[Mapping[str, Any]], configs: Sequence[PreTrainedConfig]) -> None:
    """Refuse paths that cannot be those of the experts; that they are is found by comparing what is stored with them.

    Raises:
        TreeringError: a family has no path, one has another number of blocks, or blocks of different models are one.
    """
    grown, first = tree(records), dict[str, PreTrainedConfig]()
    for record, config in zip(records, configs, strict=True):
        name, path, place = record["name"], record.get("path"), grown.places[record["name"]]
        if path is None:
            continue
        if not is_known(config) or len(path["blocks"]) != config.num_hidden_layers:
            raise TreeringError(
                f"The configuration of the expert {name}, of a {printable(config.model_type)} model of "
                f"{config.num_hidden_layers:,} blocks, describes a smaller or larger model than its files hold: "
                f"its path names {len(path['blocks']):,} blocks."
            )
        for key in filter(None, (place.embedding, *place.trunks, place.norm, place.head)):
            other = first.setdefault(key, config)
            mine, theirs = ((c.model_type, c.hidden_size) for c in (config, other))
            if mine[1] != theirs[1] or (key in place.trunks and mine != theirs):
                raise TreeringError(f"The path of the expert {name} names a part of a model that is not of its kind.")


def expert_config(record: Mapping[str, Any]) -> PreTrainedConfig:
    """An expert's own configuration, from its record in the composition's.

    Raises:
        TreeringError: it is not one that its family could have.
    """
    try:
        config = AutoConfig.for_model(**record["config"])
        sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers)
        context = getattr(config, "max_position_embeddings", None)
        if not all(type(size) is int and size > 0 for size in (*sizes, context or 1)):
            raise ValueError("its vocabulary, width, layers and context must be whole numbers above 0")
    except Exception as error:  # families raise whatever their arithmetic does
        raise TreeringError(
            f"The configuration of the expert {printable(str(record['name']))} cannot be read: "
            f"{printable(str(error) or type(error).__name__, 500)}"
        ) from error
    return config


AutoConfig.register(CompositionConfig.model_type, CompositionConfig)
