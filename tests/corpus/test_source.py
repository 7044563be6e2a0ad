from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from treering.corpus import Source, embedded, read_documents, split_of
from treering.corpus.source import in_part, suffixes
from treering.errors import TreeringError


def test_embedded_texts_are_as_published() -> None:
    counts = {language: sum(1 for _ in read_documents(embedded(language))) for language in ("ru", "zh", "en")}
    assert counts == {"ru": 2474, "zh": 2389, "en": 2540}
    with pytest.raises(TreeringError, match="'fr'; there are ru, zh, en"):
        embedded("fr")


def test_the_same_pages_are_held_out_in_every_language() -> None:
    sides = {
        language: {d.id: split_of(d.id, 0.05, 0.03) for d in read_documents(f"embedded:{language}")}
        for language in ("ru", "zh", "en")
    }
    for one, other in itertools.combinations(sides.values(), 2):
        shared = one.keys() & other.keys()
        assert {one[i] for i in shared} == {"train", "validation", "calibration"}
        assert all(one[i] == other[i] for i in shared)


def test_english_halves_share_nothing_and_miss_nothing() -> None:
    halves = [{d.id for d in read_documents(Source(path="embedded:en", part=p))} for p in ("1/2", "2/2")]
    assert not halves[0] & halves[1]
    assert len(halves[0]) + len(halves[1]) == 2540
    assert abs(len(halves[0]) - 1270) < 3 * 2540**0.5 / 2  # three standard deviations of a fair coin


@given(st.text(), st.floats(0, 0.99))
def test_split_is_the_written_rule(document_id: str, share: float) -> None:
    encoded = document_id.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"treering validation\0" + encoded).digest()
    expected = "validation" if int.from_bytes(digest[:6], "big") < share * 2**48 else "train"
    assert split_of(document_id, share) == expected


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.49))
def test_calibration_takes_from_training_only_what_is_next_to_validation(
    document_id: str, validation: float, calibration: float
) -> None:
    split = split_of(document_id, validation, calibration)
    assert (split == "validation") == (split_of(document_id, validation) == "validation")
    assert (split == "train") == (split_of(document_id, validation + calibration) == "train")


def test_calibration_has_its_share_of_many_ids() -> None:
    ids = [str(n) for n in range(50_000)]
    set_apart = sum(split_of(i, 0.05, 0.01) == "calibration" for i in ids)
    assert abs(set_apart - 500) < 3 * (50_000 * 0.01 * 0.99) ** 0.5


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_the_same_documents_and_more(document_id: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if split_of(document_id, low) == "validation":
        assert split_of(document_id, high) == "validation"


@given(st.text(), st.integers(1, 9))
def test_every_document_is_in_exactly_one_part(document_id: str, count: int) -> None:
    assert sum(in_part(document_id, f"{number}/{count}") for number in range(1, count + 1)) == 1


def test_split_and_part_are_independent() -> None:
    ids = [str(n) for n in range(20_000)]
    held_out = [i for i in ids if split_of(i, 0.2) == "validation"]
    assert abs(len(held_out) - 4_000) < 3 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(sum(in_part(i, "1/2") for i in held_out) / len(held_out) - 0.5) < 0.025


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("texts/война.txt.gz", "война"),
        ("a/b.jsonl", "b"),
        ("embedded:ru", "ru"),
        ("hub:owner/wiki", "wiki"),
        ("texts/*.txt", "texts"),
        ("texts/", "texts"),
        ("v1.2-data", "v1.2-data"),
        ("libreoffice-help.ru.jsonl.xz", "libreoffice-help.ru"),
    ],
)
def test_names_come_from_paths(path: str, name: str) -> None:
    assert Source(path=path).name == name
    assert Source(path=path, name="x").name == "x"


def test_suffixes() -> None:
    assert suffixes("a/b.TXT.XZ") == (".txt", ".xz")
    assert suffixes("b.parquet") == (".parquet", "")
    assert suffixes("b.xz") == ("", ".xz")
    assert suffixes("b") == ("", "")


@pytest.mark.parametrize("fault", [{"part": "3/2"}, {"part": "0/2"}, {"weight": 0}, {"fromat": "text"}, {"limit": 0}])
def test_a_source_is_checked(fault: dict) -> None:
    with pytest.raises(ValidationError):
        Source(path="a.txt", **fault)
