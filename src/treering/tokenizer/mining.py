"""From texts to the tokens worth an ID, the best first, and the merges that make them.

Two ways: byte-pair encoding (the trainer of ``tokenizers``; the default) and the paper's frequent n-grams.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from treering.tokenizer.layout import is_reserved, longest_first
from treering.tokenizer.sources import Source, in_equal_shares

Merge = tuple[str, str]

# A word with the one space or sign before it; up to three digits; signs; line ends; other white space. Every
# quantifier is bounded: with unbounded ones the regex engine backtracks through a whole run of spaces, and
# panics ("retry-limit-in-match over") past ten million of them.
WORDS = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]{1,128}"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,128}[\r\n]{0,8}"
    r"|\s{0,128}[\r\n]{1,8}"
    r"|\s{1,128}(?!\S)"
    r"|\s{1,128}"
)
# The paper cuts nowhere. Its n-grams hold neither white space nor digits, so cutting there changes no token.
BETWEEN_NGRAMS = r"[\s\p{Nd}]+"
LETTERS = r"[\p{L}\p{M}]+"
SOLID = r"[^\s\p{Nd}]+"
IDEOGRAPHS = range(0x2E80, 0xA4D0)  # radicals, kana, Han, Yi: no spaces between words


@dataclass(frozen=True)
class Mined:
    """Characters and n-grams, the best first and none before its parts; merges in order of application."""

    ranked: list[str]
    merges: list[Merge]


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cut at every match of ``pattern``: matches and what lies between them are pieces, nothing is lost."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def mine_byte_pairs(sources: list[Source], own: set[str], room: int, max_length: int) -> Mined:
    """Byte-pair encoding inside words, and the characters outside ``own`` that earn an ID.

    A token is worth the number of tokens it saves on the training text: an n-gram one each time it is made,
    a character all but one of its UTF-8 bytes each time it occurs. Characters and n-grams compete for the
    same ``room``, so how many characters a compact vocabulary holds needs no setting.
    """
    alphabet = set().union(*(source.characters for source in sources))
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter(WORDS)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + room,
        min_frequency=2,
        max_token_length=max_length + 1,  # the trainer's bound is exclusive
        show_progress=False,
    )
    trained.train_from_iterator(in_equal_shares(sources), trainer)
    merges: list[Merge] = [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    extra = sorted(alphabet - own)
    made = count_made(trained, merges, sources) if extra else {}
    worth: dict[str, float] = dict.fromkeys(own, float("inf"))
    worth.update({character: made[character] * (len(character.encode()) - 1) for character in extra})
    ngrams: list[str] = []
    for rank, (left, right) in enumerate(merges):
        token = left + right
        if token in worth or is_reserved(token) or left not in worth or right not in worth:
            continue
        ngrams.append(token)
        # No token is worth more than its parts, without which it could not be made.
        worth[token] = min(made[token] if extra else -rank, worth[left], worth[right])
    return Mined(sorted(extra + ngrams, key=lambda token: -worth[token]), merges)


def count_made(trained: Tokenizer, merges: Sequence[Merge], sources: list[Source]) -> dict[str, int]:
    """How often each token comes to be while the texts are encoded, even if a later merge uses it up."""
    counts = np.zeros(trained.get_vocab_size(), dtype=np.int64)
    texts = in_equal_shares(sources)
    while batch := list(islice(texts, 256)):
        ids = [np.asarray(encoding.ids, dtype=np.int64) for encoding in trained.encode_batch_fast(batch)]
        counts += np.bincount(np.concatenate(ids), minlength=len(counts))
    made = {token: int(counts[i]) for token, i in trained.get_vocab().items()}
    first: dict[str, Merge] = {}
    for left, right in merges:
        first.setdefault(left + right, (left, right))
    for token, parts in reversed(first.items()):
        for part in parts:
            made[part] += made[token]
    return made


def mine_ngrams(
    sources: list[Source], own: set[str], groups: Sequence[tuple[int, int]], extra_characters: bool
) -> Mined:
    """The paper's n-grams: the most frequent of each source in equal shares, merged longest first.

    Every way to make an n-gram of two tokens is a merge. The paper does not say which it took; with the
    prefix alone, n-grams come to be less often.

    Args:
        sources: the texts.
        own: characters that have an ID already.
        groups: (number of IDs, longest n-gram) of each group of free IDs.
        extra_characters: whether characters that have no ID of their own may take one (compact layout).
    """
    target = max(source.size for source in sources)
    longest = max(longest for _, longest in groups)
    counts = [
        Counter({t: n * target / source.size for t, n in _count_ngrams(source, longest).items()}) for source in sources
    ]
    ranked: list[str] = []
    for room, longest in groups:
        queue = _in_turn(counts, longest, taken=set(ranked))
        if extra_characters:
            ranked += _with_characters(list(queue), sources, own, room)
        else:
            ranked += islice((token for token, _ in queue if own.issuperset(token)), room)
    known = own.union(ranked)
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(known, key=longest_first)
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    return Mined(ranked, merges)


def _count_ngrams(source: Source, longest: int) -> Counter[str]:
    """N-grams inside words; in scripts without spaces, over all that is neither white space nor digit."""
    letters = sum(n for character, n in source.characters.items() if character.isalpha())
    ideographs = sum(n for character, n in source.characters.items() if ord(character) in IDEOGRAPHS)
    pattern = Regex(SOLID if 2 * ideographs > letters else LETTERS)
    cut = pre_tokenizers.Split(pattern, "removed", invert=True)
    pieces: Counter[str] = Counter()
    for chunk in source.chunks():
        pieces.update(piece for piece, _ in cut.pre_tokenize_str(chunk))
    ngrams: Counter[str] = Counter()
    for piece, n in pieces.items():
        for length in range(2, longest + 1):
            for start in range(len(piece) - length + 1):
                ngrams[piece[start : start + length]] += n
    return Counter({token: n for token, n in ngrams.items() if n > 1 and not is_reserved(token)})


def _in_turn(counts: Sequence[Counter[str]], longest: int, taken: set[str]) -> Iterator[tuple[str, float]]:
    """(n-gram, count): each source in turn gives its most frequent n-gram that is not yet taken."""
    queues = [
        iter(sorted(((t, n) for t, n in counter.items() if len(t) <= longest), key=lambda tn: (-tn[1], tn[0])))
        for counter in counts
    ]
    while queues:
        for queue in list(queues):
            found = next((pair for pair in queue if pair[0] not in taken), None)
            if found is None:
                queues.remove(queue)
            else:
                taken.add(found[0])
                yield found


def _with_characters(queue: Sequence[tuple[str, float]], sources: list[Source], own: set[str], room: int) -> list[str]:
    """Characters as long as one saves more tokens than the n-gram it displaces; then n-grams of these."""
    target = max(source.size for source in sources)
    worth: dict[str, float] = {}
    for source in sources:
        for character, n in source.characters.items():
            if character not in own:
                saved = n * (len(character.encode()) - 1) * target / source.size
                worth[character] = worth.get(character, 0.0) + saved
    characters = sorted(worth, key=lambda character: (-worth[character], character))[:room]
    taken = 0
    for character in characters:
        displaced = room - taken - 1
        if displaced < len(queue) and worth[character] < queue[displaced][1]:
            break
        taken += 1
    known = own.union(characters[:taken])
    ngrams = islice((token for token, _ in queue if known.issuperset(token)), room - taken)
    return [*characters[:taken], *ngrams]
