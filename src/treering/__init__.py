"""Grow and join language models on a frozen core."""

__version__ = "0.1.0"
