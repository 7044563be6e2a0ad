"""How long a run reads where its recipe does not say, and what is said of runs that are short or went too far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treering.training.settings import Keep

TOKENS_A_PARAMETER = 20
"""Read of each parameter that trains, where there is text enough (Hoffmann et al. 2022)."""
MOST_PASSES = 8
"""Over a corpus. Up to four are worth as much as new text, later ones less and less (Muennighoff et al. 2023)."""
FEW_STEPS = 200
"""In fewer, a model that begins with nothing hardly learns (docs/training.md: How long)."""
WORSE = 1.002
"""Times the best validation that is no longer chance."""


def chosen_length(trained: int, available: int) -> tuple[int, str]:
    """Tokens to read of a corpus, and why, in words.

    Args:
        trained: parameters that train.
        available: tokens of the corpus.
    """
    wanted = TOKENS_A_PARAMETER * trained
    tokens = min(max(wanted, available), MOST_PASSES * available)
    passes = f"{tokens:,} tokens, {tokens / available:.1f} passes over the corpus"
    if tokens < wanted:
        return tokens, f"{passes}; {wanted:,} would be {TOKENS_A_PARAMETER} for each parameter, so more text would help"
    return tokens, f"{passes}: {TOKENS_A_PARAMETER} for each parameter that trains, and all of the text at least once"


def too_few(steps: int) -> str | None:
    """What to say of a run that is short, before it begins."""
    if steps >= FEW_STEPS:
        return None
    return (
        f"{steps:,} steps are few for a model that begins with nothing. More passes (training.epochs), smaller steps "
        "(training.batch_tokens), or more text would serve; without tokens and epochs the length is chosen."
    )


def lowest(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first entry of the lowest validation in a log; None if there was none yet."""
    return min((entry for entry in history if "eval_loss" in entry), key=lambda e: e["eval_loss"], default=None)


def too_far(history: Sequence[Mapping[str, Any]], keep: Keep | None) -> str | None:
    """What to say of a finished run whose validation had been better before."""
    best, last = lowest(history), next(entry for entry in reversed(history) if "eval_loss" in entry)
    assert best is not None
    bits, bits_after = best["eval_bits_per_byte"], last["eval_bits_per_byte"]
    rose = bits_after > bits * WORSE
    serve = "fewer passes (training.epochs) or more text would serve."
    if keep == "best" and best is not last:
        after = f"it rose to {bits_after:.3f} after; {serve}" if rose else "it was no lower after"
        return f"kept step {best['step']:,} of {last['step']:,}: validation {bits:.3f} bits/byte; {after}"
    if not rose:
        return None
    return (
        f"overfitting: validation was {bits:.3f} bits/byte at step {best['step']:,} and is {bits_after:.3f} at the "
        f"end. The model is that of the end (training.keep: last); {serve}"
    )
