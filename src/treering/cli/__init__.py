"""The command line: thin skins over public functions of the same names."""

from treering.cli.main import main

__all__ = ["main"]
