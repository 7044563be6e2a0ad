"""The frozen token interface (paper, section "frozen substrate")."""

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
    "Recipe",
    "Substrate",
    "Verification",
    "build",
    "draw_sheet",
    "load",
    "rebuild",
    "require_same",
    "require_substrate",
    "verify",
]
