"""Text to token IDs and back, exactly."""

from treering.tokenizer.description import Description, characters_per_token, describe
from treering.tokenizer.loading import encode, identity, load, separator
from treering.tokenizer.training import save, train

__all__ = [
    "Description",
    "characters_per_token",
    "describe",
    "encode",
    "identity",
    "load",
    "save",
    "separator",
    "train",
]
