"""Text to token IDs and back, exactly."""

from treering.tokenizer.loading import encode, identity, load

__all__ = ["encode", "identity", "load"]
