from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.corpus import read_documents
from treering.evaluation.owners import owner_of, share_of, shared_topics, topic_of

PAGES = st.builds(
    lambda topic, page: f"{topic}/{page}" if topic else page,
    st.sampled_from(["", "a", "b", "a/b", "a/c", "d"]),
    st.sampled_from([f"{number}" for number in range(12)]),
)
KIND = st.dictionaries(PAGES, st.integers(1, 10_000), min_size=1, max_size=40)
SIZES = st.dictionaries(st.sampled_from(["ru", "zh", "en"]), KIND, min_size=1)
MEMBERS, OVERLAPS = st.integers(1, 5), st.floats(0, 1)


def owned(sizes, members, overlap):
    """The owners of each topic."""
    found: dict[str, set[int]] = {}
    for page, owner in owner_of(sizes, members, overlap).items():
        found.setdefault(topic_of(page), set()).add(owner)
    return found


def test_a_topic_stands_before_the_last_slash():
    assert [topic_of(page) for page in ("swriter/guide/foo", "a/b", "alone", "/rooted")] == [
        "swriter/guide",
        "a",
        "alone",
        "/rooted",
    ]


@given(SIZES, MEMBERS, OVERLAPS)
def test_every_page_has_one_owner_whatever_the_order_in_which_pages_come(sizes, members, overlap):
    owners = owner_of(sizes, members, overlap)
    assert owners.keys() == {page for own in sizes.values() for page in own}
    assert set(owners.values()) <= set(range(members))
    turned = {kind: dict(reversed(own.items())) for kind, own in sizes.items()}
    assert owner_of(turned, members, overlap) == owners


@given(SIZES, MEMBERS)
def test_without_overlap_a_topic_is_one_owners_and_with_all_of_it_everybodys(sizes, members):
    assert shared_topics(sizes, 0) == []
    assert all(len(owners) == 1 for owners in owned(sizes, members, 0).values())
    pages = Counter(topic_of(page) for page in {page for own in sizes.values() for page in own})
    for topic, owners in owned(sizes, members, 1).items():
        assert len(owners) == min(members, pages[topic])


@given(SIZES, MEMBERS, OVERLAPS)
def test_a_topic_is_shared_or_one_owners(sizes, members, overlap):
    shared = shared_topics(sizes, overlap)
    assert all(len(owners) == 1 for topic, owners in owned(sizes, members, overlap).items() if topic not in shared)


@given(SIZES, OVERLAPS, OVERLAPS)
def test_what_little_overlap_shares_more_overlap_shares_too(sizes, one, other):
    less, more = (shared_topics(sizes, overlap) for overlap in sorted((one, other)))
    assert more[: len(less)] == less


@given(SIZES, OVERLAPS)
def test_the_shared_topics_are_as_near_to_the_overlap_as_the_order_allows(sizes, overlap):
    order, shared = shared_topics(sizes, 1), shared_topics(sizes, overlap)
    off = [abs(share_of(sizes, order[:many]) - overlap) for many in range(len(order) + 1)]
    assert off[len(shared)] == pytest.approx(min(off), abs=1e-9)


@given(KIND, MEMBERS)
def test_owners_of_one_kind_differ_by_no_more_than_the_largest_topic(own, members):
    owners = owner_of({"ru": own}, members, 0)
    held, topics = Counter(dict.fromkeys(range(members), 0)), Counter()
    for page, size in own.items():
        held[owners[page]] += size
        topics[topic_of(page)] += size
    assert max(held.values()) - min(held.values()) <= max(topics.values())


@pytest.fixture(scope="module")
def help_pages():
    return {
        kind: {document.id: len(document.text.encode()) for document in read_documents(f"embedded:{kind}")}
        for kind in ("ru", "zh", "en")
    }


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 1])
def test_owners_of_the_help_pages_have_about_as_much_of_every_language(help_pages, members, overlap):
    owners = owner_of(help_pages, members, overlap)
    assert abs(share_of(help_pages, shared_topics(help_pages, overlap)) - overlap) < 0.08
    for own in help_pages.values():
        held = Counter()
        for page, size in own.items():
            held[owners[page]] += size / sum(own.values())
        assert all(share == pytest.approx(1 / members, rel=0.15) for share in held.values()), held
