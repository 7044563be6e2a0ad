from __future__ import annotations

from treering.corpus import windows


def test_every_token_of_a_long_document_is_scored_once_with_half_a_context():
    cut = list(windows([list(range(1000))], 0, context=64))
    scored = [token for w in cut for token in w.tokens[w.scored_from :]]
    assert scored == list(range(1000))
    assert all(w.scored_from >= 32 for w in cut[1:])
    assert max(len(w.tokens) for w in cut) == 65
