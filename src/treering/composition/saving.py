"""What of a composition is stored, and which of the wishes of ``save_pretrained`` it can fulfil."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.utils.hub import convert_file_size_to_int

from treering.errors import TreeringError


def stored(model: PreTrainedModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a composition that are stored, by name: the model's own, or those of ``state``.

    Raises:
        TreeringError: ``state`` is of another composition, or there are no weights (the model is on the meta device).
    """
    tied = model.all_tied_weights_keys
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    if state is not None:
        given = {name: tensor for name, tensor in state.items() if name not in tied}
        _require_state_of(own, given)
        own = given
    return {name: _with_data(model, name, tensor) for name, tensor in own.items()}


def precision(shard: Mapping[str, Tensor]) -> str:
    """The precision of the weights in an expert's shard, as a configuration names it."""
    return str(next(t.dtype for t in shard.values() if t.is_floating_point())).removeprefix("torch.")


def require_size(shards: Mapping[str, Mapping[str, Tensor]], most: int | str | None) -> None:
    """Refuse to store a shard that is larger than files may be.

    Raises:
        TreeringError: names the shard. A composition has one for each substrate and expert, so that they can come and
            go; none is divided.
    """
    limit = None if most is None else convert_file_size_to_int(most)
    for file, tensors in shards.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        if limit is not None and size > limit:
            raise TreeringError(
                f"{file} would take {size:,} bytes, more than max_shard_size={most!r} allows. A composition has one "
                "file for each substrate and each expert, so that experts can come and go, and divides none: allow "
                "more, or store the experts in a narrower precision."
            )


def require_plain(wishes: Mapping[str, Any]) -> None:
    """Refuse what ``save_pretrained`` of other models can do and that of a composition cannot.

    Raises:
        TreeringError: names what was asked for.
    """
    if asked := [f"{name}={value!r}" for name, value in wishes.items() if value]:
        raise TreeringError(
            f"A composition cannot be saved with {', '.join(asked)}: it is always a file for each substrate, each "
            "expert and what was fitted, in safetensors. Leave that out."
        )


def _require_state_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "has besides"), (reshaped, "has in another shape")):
        if names:
            raise TreeringError(
                f"The state_dict to save is not one of this composition: it {what} {len(names)} tensors, such as "
                f"{names[0]}. Give one whose names and shapes are those of model.state_dict()."
            )


def _with_data(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """A tensor itself, or what it stands for if it was put on the disk meanwhile."""
    if tensor.device.type != "meta":
        return tensor
    try:
        return load_offloaded_parameter(model, name)
    except ValueError:
        raise TreeringError(
            f"There is nothing to save: {name} is on the meta device, which holds shapes without numbers. Load the "
            "composition on a device first."
        ) from None
