"""Paths with a common beginning, as trunks: whatever the order in which the experts are named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from treering.composition.tree import tree


def record(name, blocks, embedding="e", norm=None, head="h", substrate=None):
    """An expert whose blocks are letters."""
    named = {"embedding": embedding * 64, "blocks": [b * 64 for b in blocks], "norm": (norm or name[0]) * 64}
    return {"name": name, "substrate": substrate, "path": named | {"head": head * 64}}


def common(one, other):
    """How long the common beginning of two stacks is."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def shape(grown):
    """Of each trunk: its blocks' numbers, and who passes through it."""
    return sorted((trunk.first, trunk.last, "".join(sorted(trunk.experts))) for trunk in grown.trunks.values())


def test_a_base_and_branches_of_branches():
    grown = tree(
        [record("a", "xyz"), record("b", "xyzuv"), record("c", "xyzuvw"), record("d", "xyzuq"), record("f", "xk")]
    )
    assert shape(grown) == [(0, 1, "abcdf"), (1, 3, "abcd"), (3, 4, "bcd"), (4, 5, "bc")]
    assert [grown.places[name].first for name in "abcdf"] == [3, 5, 5, 4, 1]
    assert [len(grown.places[name].trunks) for name in "abcdf"] == [2, 4, 4, 3, 1]
    for key, trunk in grown.trunks.items():
        assert key == trunk.key
        below = grown.trunks.get(trunk.below)
        assert trunk.first == (below.last if below else 0)


def test_specialists_share_a_substrate_and_no_block():
    grown = tree([record("a", "xy", substrate="5" * 64), record("b", "uy", substrate="5" * 64)])
    assert not grown.trunks
    assert {place.embedding for place in grown.places.values()} == {"5" * 16}
    assert {place.first for place in grown.places.values()} == {0}


def test_blocks_on_other_embeddings_are_not_shared_but_heads_are():
    grown = tree([record("a", "xy", embedding="1", norm="n"), record("b", "xy", embedding="2", norm="n")])
    assert not grown.trunks
    assert {(p.embedding, p.norm, p.head, p.own) for p in grown.places.values()} == {(None, None, "h" * 16, True)}


def test_a_head_that_is_the_shared_embedding_is_tied():
    grown = tree([record("a", "x", head="e"), record("b", "xy", head="e"), record("c", "xy", head="k")])
    assert [grown.places[name].tied for name in "abc"] == [True, True, False]
    assert [grown.places[name].head for name in "abc"] == [None] * 3


def test_one_twice_has_nothing_alone():
    grown = tree([record("a", "xy", norm="n"), record("b", "xy", norm="n")])
    assert shape(grown) == [(0, 2, "ab")]
    assert not any(place.own for place in grown.places.values())


def test_an_expert_whose_parts_are_not_known_stands_alone():
    grown = tree(
        [record("a", "xy"), {"name": "b", "substrate": None, "path": None}, {"name": "c", "substrate": "5" * 64}]
    )
    assert not grown.trunks
    assert [grown.places[name].embedding for name in "abc"] == [None, None, "5" * 16]


@given(st.lists(st.text("xyz", max_size=5), min_size=1, max_size=6), st.randoms())
def test_every_expert_passes_exactly_its_blocks_and_trunks_are_as_long_as_can_be(stacks, random):
    records = [record(f"{n}", blocks) for n, blocks in enumerate(stacks)]
    grown = tree(records)
    for n, blocks in enumerate(stacks):
        place = grown.places[str(n)]
        passed = [(grown.trunks[key].first, grown.trunks[key].last) for key in place.trunks]
        assert [first for first, _ in passed] == [0, *(last for _, last in passed)][: len(passed)]
        assert place.first == (passed[-1][1] if passed else 0)
        others = [other for m, other in enumerate(stacks) if m != n]
        shared = max((common(blocks, other) for other in others), default=0)
        assert place.first == shared
    again = list(records)
    random.shuffle(again)
    assert set(tree(again).trunks) == set(grown.trunks)
