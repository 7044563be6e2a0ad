"""Which rows of a substrate lie near one another: a token's nearest, and all of them on a plane."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.reading import printable
from treering.substrate.glyphs import token_texts
from treering.tokenizer import encode

WIDTHS = {"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER", "SMALL"}
"""Words that stand before a script's in the names of characters."""
LEAST = 12
"""Rows of a map that give a script a mark of its own; of fewer, it is among the others."""
MARKED = 8
"""Scripts with a mark of their own, at most."""
OTHERS = "others"


class Neighbour(NamedTuple):
    """A row near another: its token and the cosine between both."""

    token: int
    cosine: float


def find_tokens(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> list[int]:
    """The token of each word: the one that stands for that text, or is spelled so in the vocabulary (``Ġthe``).

    Raises:
        TreeringError: there is none; how the tokenizer cuts the word is told.
    """
    vocabulary, texts = tokenizer.get_vocab(), token_texts(tokenizer)
    of_text = {text: index for index, text in reversed(list(enumerate(texts))) if text}
    found = []
    for word in words:
        index = of_text.get(word, vocabulary.get(word))
        if index is None:
            pieces = ", ".join(repr(texts[piece]) for piece in encode(tokenizer, [word])[0][:20])
            raise TreeringError(
                f"{printable(word)!r} is no token of this vocabulary"
                + (f": it is cut into {pieces}." if pieces else ".")
            )
        found.append(index)
    return found


def neighbours(matrix: torch.Tensor, tokens: Sequence[int], count: int = 10) -> list[list[Neighbour]]:
    """The ``count`` nearest other rows of each token's row by cosine, the nearest first; of equal ones the lower ID.

    Args:
        matrix: [vocab, d_model].
    """
    rows = torch.nn.functional.normalize(matrix.float(), dim=-1)
    cosines = (rows[list(tokens)] @ rows.T).numpy()
    found = []
    for token, own in zip(tokens, cosines, strict=True):
        order = np.argsort(-own, kind="stable")
        found.append([Neighbour(int(at), float(own[at])) for at in order[: count + 1] if at != token][:count])
    return found


def script_of(text: str) -> str:
    """The script of a text's first letter, as the name of that character says it: ``latin``, ``cyrillic``, ``cjk``.

    Python knows no scripts; the first word of a letter's name is the script's for nearly all that are in use. A text
    without letters is of ``digits``, ``signs`` or ``blanks``.
    """
    for character in text:
        if unicodedata.category(character).startswith("L"):
            words = unicodedata.name(character, "unknown").split()
            return next((word for word in words if word not in WIDTHS), words[0]).lower()
    kinds = {unicodedata.category(character)[0] for character in text}
    return "digits" if "N" in kinds else "signs" if kinds & {"P", "S"} else "blanks"


def named_scripts(texts: Sequence[str]) -> list[str]:
    """The script of each text, rare ones as `OTHERS`."""
    scripts = [script_of(text) for text in texts]
    common = {script for script, count in Counter(scripts).most_common(MARKED - 1) if count >= LEAST}
    return [script if script in common else OTHERS for script in scripts]


def sample_rows(vocab: int, rows: int, seed: int = 0) -> list[int]:
    """So many token IDs of a vocabulary, all of a smaller one, in ascending order."""
    if vocab <= rows:
        return list(range(vocab))
    return sorted(np.random.default_rng(seed).choice(vocab, rows, replace=False).tolist())


def with_own_nearest(matrix: torch.Tensor, kinds: Sequence[str]) -> tuple[float, float]:
    """The share of rows whose nearest other row is of their own kind, and what it would be if they lay anyhow.

    Args:
        matrix: [row, d_model], two rows or more; ``kinds``: [row].
    """
    nearest = [found[0].token for found in neighbours(matrix, range(len(kinds)), 1)]
    own = float(np.mean([kinds[row] == kinds[other] for row, other in enumerate(nearest)]))
    pairs = sum(count * (count - 1) for count in Counter(kinds).values())
    return own, pairs / (len(kinds) * (len(kinds) - 1))


def on_a_plane(matrix: torch.Tensor, seed: int = 0) -> np.ndarray:
    """Where t-SNE puts rows [row, d_model] on a plane [row, 2]: near ones stay near, far ones may end up anywhere.

    Van der Maaten & Hinton 2008, by scikit-learn, from the rows' first two principal components.

    Raises:
        TreeringError: scikit-learn is not installed, or there are too few rows.
    """
    if len(matrix) < 10:
        raise TreeringError(f"A map of {len(matrix)} rows would show nothing; give ten or more.")
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise TreeringError("To draw a map, install scikit-learn: pip install 'treering[map]'") from None
    rows = torch.nn.functional.normalize(matrix.float(), dim=-1).numpy()
    placed: np.ndarray = TSNE(perplexity=min(30, len(rows) / 4), random_state=seed, n_jobs=1).fit_transform(rows)
    return placed
