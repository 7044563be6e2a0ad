"""The command line: thin skins over public functions of the same names."""

import sys

try:
    from treering.cli.main import main
except KeyboardInterrupt:  # before there is anything that could say more
    print("Stopped by Ctrl-C.", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["main"]
