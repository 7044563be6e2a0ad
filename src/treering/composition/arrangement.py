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
        expert, config, place = record["name"], expert_config(record), grown.places[record["name"]]
        own = backbone.family(config) if is_known(config) else None
        # A head that is the expert's own embedding, which its family knows, is there once.
        twice = f"{own.head}." if own and config.tie_word_embeddings and not (place.embedding or place.head) else None
        for name, tensor in wholes[expert].items():
            if not (twice and name.startswith(twice)):
                arranged.setdefault(_stored_name(grown, place, expert, own, name), tensor)
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


def _stored_name(grown: Tree, place: Place, expert: str, own: backbone.Family | None, name: str) -> str:
    """What a tensor of an expert is called in the composition; ``own`` says where its family keeps what, if known."""
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
    return f"experts.{expert}.{name}"


def in_base(blocks: str) -> str:
    """Where a base model keeps its blocks, from where the model with a head does: ``layers``, from ``model.layers``."""
    return blocks.partition(".")[2]


def _is_alone(place: Place) -> bool:
    """Whether an expert shares nothing."""
    return not (place.embedding or place.norm or place.head)
