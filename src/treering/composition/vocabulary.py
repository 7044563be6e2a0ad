"""One tokenizer for all experts: an ID is the same token to each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from treering import backbone
from treering import tokenizer as tokenizers
from treering.errors import TreeringError


def tokenizer_of(expert: str | os.PathLike[str], model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """An expert's tokenizer, which is the one that it was docked with.

    Raises:
        TreeringError: it is another, or there is none.
    """
    tokenizer = tokenizers.load(expert)
    own = backbone.standing(model.config)
    if own is not None and tokenizers.identity(tokenizer) != own.tokenizer:
        raise TreeringError(
            f"The tokenizer in {expert} is not the one that its config.json names: "
            f"{tokenizers.identity(tokenizer)} instead of {own.tokenizer}."
        )
    return tokenizer


def require_same_tokenizer(read: Mapping[str, PreTrainedTokenizerFast]) -> None:
    """Refuse tokenizers, by their models' names, to which an ID means different tokens.

    Raises:
        TreeringError: two differ; both are named.
    """
    identities = {name: tokenizers.identity(tokenizer) for name, tokenizer in read.items()}
    first_name, first = next(iter(identities.items()))
    for name, own in identities.items():
        if own != first:
            raise TreeringError(
                f"{first_name} and {name} have different tokenizers, so an ID is not the same token to both:\n"
                f"  {first_name}: {first}\n  {name}: {own}\nOnly models of one tokenizer can be joined."
            )


def require_covered(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a vocabulary that lacks tokens of the tokenizer.

    Raises:
        TreeringError: an expert has too few rows.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    if config.vocab_size < needed:
        raise TreeringError(
            f"The tokenizer has IDs up to {needed - 1:,}, but there is an expert with only {config.vocab_size:,} rows "
            "in its output head. An expert must know every token."
        )
