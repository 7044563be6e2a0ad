"""Where each tensor of an expert is in a composition, and back again: what the tree says, in names of tensors.

- ``substrates.KEY.weight``: an embedding that experts share.
- ``trunks.KEY.layers.N.…``: a trunk's blocks.
- ``norms.KEY.…``, ``heads.KEY.weight``: a final norm or a head that several experts have.
- ``experts.NAME.…``: all that an expert has alone, as its family names it, its blocks numbered anew from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from treering import backbone
from treering.composition.configuration import expert_config
from treering.composition.parts import is_known
from treering.composition.tree import Place, Record, Tree


def arrange(grown: Tree, records: Sequence[Record], wholes: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a composition, by their names in it.

    Args:
        wholes: by expert, its tensors as Hugging Face names them.
    """
    arranged: dict[str, Tensor] = {}
    for record in records:
        place = grown.places[record["name"]]
        for name, tensor in wholes[record["name"]].items():
            if not _is_tied_alone(place, record, name):
                arranged.setdefault(_stored_name(grown, place, record, name), tensor)
    return arranged


def whole(grown: Tree, record: Record, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of one expert as Hugging Face names them, from those of the composition; the inverse of `arrange`."""
    place, prefix = grown.places[record["name"]], f"experts.{record['name']}."
    if _is_alone(place):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    own, found = backbone.family(expert_config(record)), dict[str, Tensor]()
    begins = {f"{prefix}{own.blocks}.": place.first}
    begins |= {f"trunks.{key}.{in_base(own.blocks)}.": grown.trunks[key].first for key in place.trunks}
    ends = {f"substrates.{place.embedding}.": own.embedding, f"norms.{place.norm}.": own.final_norm}
    ends[f"heads.{place.head}."] = own.head
    for name, tensor in tensors.items():
        if below := next((begin for begin in begins if name.startswith(begin)), None):
            number, _, rest = name.removeprefix(below).partition(".")
            found[f"{own.blocks}.{int(number) + begins[below]}.{rest}"] = tensor
        elif end := next((end for end in ends if name.startswith(end)), None):
            found[f"{ends[end]}.{name.removeprefix(end)}"] = tensor
        elif name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
    if place.tied:
        found[f"{own.head}.weight"] = found[f"{own.embedding}.weight"]
    return found


def _stored_name(grown: Tree, place: Place, record: Record, name: str) -> str:
    """What a tensor of an expert is called in the composition."""
    own = None if _is_alone(place) else backbone.family(expert_config(record))
    parent, _, last = name.rpartition(".")
    if own and name.startswith(f"{own.blocks}."):
        number, _, rest = name.removeprefix(f"{own.blocks}.").partition(".")
        for key in place.trunks:
            if int(number) < grown.trunks[key].last:
                return f"trunks.{key}.{in_base(own.blocks)}.{int(number) - grown.trunks[key].first}.{rest}"
        name = f"{own.blocks}.{int(number) - place.first}.{rest}"
    elif own and place.embedding and (parent == own.embedding or (place.tied and parent == own.head)):
        return f"substrates.{place.embedding}.{last}"
    elif own and place.norm and parent == own.final_norm:
        return f"norms.{place.norm}.{last}"
    elif own and place.head and parent == own.head:
        return f"heads.{place.head}.{last}"
    return f"experts.{record['name']}.{name}"


def _is_tied_alone(place: Place, record: Record, name: str) -> bool:
    """Whether a tensor is the head of an expert alone that is its own embedding, which its family knows."""
    config = expert_config(record)
    alone = config.tie_word_embeddings and is_known(config) and not (place.embedding or place.head)
    return alone and name.startswith(f"{backbone.family(config).head}.")


def in_base(blocks: str) -> str:
    """Where a base model keeps its blocks, from where the model with a head does: ``layers``, from ``model.layers``."""
    return blocks.partition(".")[2]


def _is_alone(place: Place) -> bool:
    """Whether an expert shares nothing."""
    return not (place.embedding or place.norm or place.head)
