"""What a shell offers at the Tab key where a rule, a plan or a preset may stand.

The names stand here too, as importing what they name would take seconds at every key; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable

NAMES = {
    "rule": ("mean", "weighted", "probability", "evidence", "top_k", "gate", "adapter"),
    "fitted rule": ("weighted", "gate", "adapter"),
    "plan": (
        *("paper-6", "paper-9", "paper-16", "sliding-6", "revolving-6", "revolving-12", "looped-6", "looped-12"),
        *("copied-6", "copied-12", "turns-6", "turns-12", "shallow-2", "monolithic-6", "branch"),
    ),
    "preset": (
        *("tiny", "small", "medium", "pro_bvv", "best_bvv", "max_bvv", "nemo_bvv"),
        *(f"abs-bvv-{layers}" for layers in range(1, 7)),
        *("study-glyph", "study-grown", "study-trainable", "study-16bit", "long-16bit"),
    ),
}


def offered(kind: str) -> Callable[[str], list[str]]:
    """The names of a kind that begin as what was typed does; where none does, the shell offers files."""
    return lambda incomplete: [name for name in NAMES[kind] if name.startswith(incomplete)]
