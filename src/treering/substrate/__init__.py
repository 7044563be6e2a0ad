"""The frozen token interface (paper, section "frozen substrate")."""

from treering.substrate.nearest import (
    Neighbour,
    find_tokens,
    named_scripts,
    neighbours,
    on_a_plane,
    sample_rows,
    script_of,
    with_own_nearest,
)
from treering.substrate.sheet import draw_sheet
from treering.substrate.substrate import (
    Recipe,
    Substrate,
    Verification,
    build,
    load,
    rebuild,
    require_same,
    require_substrate,
    verify,
)

__all__ = [
    "Neighbour",
    "Recipe",
    "Substrate",
    "Verification",
    "build",
    "draw_sheet",
    "find_tokens",
    "load",
    "named_scripts",
    "neighbours",
    "on_a_plane",
    "rebuild",
    "require_same",
    "require_substrate",
    "sample_rows",
    "script_of",
    "verify",
    "with_own_nearest",
]
