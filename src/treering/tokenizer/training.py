"""Train a Unicode tokenizer: every string comes back exactly (the paper, section "Tokenizers")."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from treering.errors import TreeringError
from treering.tokenizer import mining
from treering.tokenizer.layout import (
    BMP,
    SPECIAL_TOKENS,
    LayoutName,
    choose_layout,
    fixed_tokens,
    free_ids,
    lay_out,
)
from treering.tokenizer.sources import survey

MergeOrder = Literal["bpe", "longest-first"]


def train(
    texts: Mapping[str, Iterable[str]],
    vocab_size: int = 65_536,
    *,
    layout: LayoutName | None = None,
    merges: MergeOrder = "bpe",
    max_length: int = 16,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose ``decode(encode(text))`` is ``text`` for every Unicode string.

    The same texts give the same tokenizer byte for byte, whatever the number of threads.

    Args:
        texts: by source (a language, usually) its texts. Each iterable is read several times and never held
            in memory; a one-shot iterator is copied to a temporary file first. Smaller sources are repeated
            up to the size of the largest, so that each has an equal say in which n-grams are taken.
        vocab_size: number of tokens, exactly; what the corpus does not fill is ``<unused_ID>``.
        layout: ``unicode`` (the paper's: the code points of the basic plane at their own IDs; 65,536 tokens
            or more) or ``compact`` (ASCII, the characters worth an ID, n-grams; 279 tokens or more). None
            takes the one that fits the size.
        merges: ``bpe``, or ``longest-first``: the paper's n-grams of 2–3 characters (to 5 beyond 65,536).
        max_length: the longest n-gram of ``bpe``, in characters.

    Raises:
        TreeringError: no text, a text that is not a Unicode string, or a size that does not fit the layout.
    """
    layout = choose_layout(vocab_size, layout)
    if merges not in get_args(MergeOrder):
        raise TreeringError(f"There is no merge order {merges!r}; choose bpe or longest-first.")
    if max_length < 2:
        raise TreeringError(f"max_length is {max_length}, but an n-gram has at least 2 characters.")
    sources = survey(texts)
    own = {token for token in fixed_tokens(layout) if len(token) == 1}
    sizes = [len(ids) for ids in free_ids(layout, vocab_size)]
    if merges == "bpe":
        mined = mining.mine_byte_pairs(sources, own, sum(sizes), max_length)
    else:
        longest = [3, 5] if layout == "unicode" else [3 if vocab_size <= BMP else 5]
        groups = list(zip(sizes, longest, strict=True))
        mined = mining.mine_ngrams(sources, own, groups, extra_characters=layout == "compact")
    ranked = mined.ranked[: sum(sizes)]
    known = own.union(ranked)
    kept = [(a, b) for a, b in mined.merges if a in known and b in known and a + b in known]
    pattern = mining.WORDS if merges == "bpe" else mining.BETWEEN_NGRAMS
    return _assemble(lay_out(layout, vocab_size, ranked), kept, pattern)


def _assemble(vocabulary: dict[str, int], merges: list[mining.Merge], pattern: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = mining.splitter(pattern)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="</s>",  # what stands before each document, also where other tools ask what one begins with
        eos_token="</s>",
        unk_token="<unk>",
        split_special_tokens=True,  # a document cannot forge </s>
        clean_up_tokenization_spaces=False,
    )


def save(
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike[str],
    context: int | None = None,
    begins_with_separator: bool = False,
) -> None:
    """``save_pretrained`` that names the class ``PreTrainedTokenizerFast``, as transformers 4 and 5 know it.

    transformers 5 itself writes its new name for the same class, ``TokenizersBackend``.

    Args:
        context: tokens that the model beside it reads at most: ``model_max_length``, if it has none yet.
        begins_with_separator: the model beside it has seen no other beginning of a text than the separator, so that is
            what ``bos_token`` names; other tools, such as lm-eval, put it before a text.
    """
    tokenizer.save_pretrained(directory)
    path = Path(directory) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if context is not None and config.get("model_max_length", VERY_LARGE_INTEGER) >= VERY_LARGE_INTEGER:
        config["model_max_length"] = context
    if begins_with_separator:
        config["bos_token"] = config["eos_token"]
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
