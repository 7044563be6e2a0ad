"""The text of a request while it is written."""

from __future__ import annotations

import random

import pytest
import torch

from treering import tokenizer as tokenizers
from treering.serving.written import Stopped, StopStrings, Written, laid_out


@pytest.fixture(scope="module")
def byte_tokenizer(pages):
    """A tokenizer that spells what it does not know in bytes."""
    return tokenizers.train({"en": pages["en"]}, 400)


def write(written: Written, ids: list[int]) -> None:
    try:
        written.put(torch.tensor([[2]]))  # the prompt
        for i in ids:
            written.put(torch.tensor([i]))
        written.end()
    except Stopped:
        pass


@pytest.mark.parametrize("name", ["tokenizer", "byte_tokenizer"])
def test_any_tokens_stream_to_their_text(request, name):
    """Also characters in pieces, and bytes that are none; with a stop string, up to it."""
    tokenizer = request.getfixturevalue(name)
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 40))]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        at = rng.randrange(len(whole) + 1)
        for stop in ([], [whole[at : at + 3]] if whole[at:] else []):
            sent: list[str] = []
            written = Written(tokenizer, stop, sent.append)
            write(written, ids)
            assert "".join(sent) == written.text == (whole.partition(stop[0])[0] if stop else whole)


@pytest.mark.parametrize("name", ["tokenizer", "byte_tokenizer"])
def test_tokens_start_where_those_before_them_end(request, name, pages):
    """Where they end in the middle of a character, or of bytes that are read together, somewhere before."""
    tokenizer = request.getfixturevalue(name)
    rng = random.Random(2)
    texts = [[rng.randrange(len(tokenizer)) for _ in range(30)] for _ in range(200)]
    texts += tokenizers.encode(tokenizer, [pages[language][0][:300] for language in ("ru", "zh", "en")])
    exact = 0
    for ids in texts:
        text, starts = laid_out(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert starts == sorted(starts)
        names = tokenizer.convert_ids_to_tokens(ids)
        for i, start in enumerate(starts):
            before = tokenizer.decode(ids[:i], skip_special_tokens=True)
            assert start <= len(before)
            has_text = tokenizer.decode(ids[i : i + 1], skip_special_tokens=True) != ""
            together = all(token.startswith("<0x") for token in names[max(0, i - 1) : i + 1])
            if text.startswith(before) and not before.endswith("\ufffd") and has_text and not together:
                exact += 1
                assert start == len(before)
    assert exact > 0.5 * sum(map(len, texts))


@pytest.mark.parametrize("name", ["tokenizer", "byte_tokenizer"])
def test_what_is_decoded_again_does_not_grow_with_the_text(request, name, monkeypatch):
    """Nor where nothing is certain for long: bytes that are no characters."""
    tokenizer, decoded, rng = request.getfixturevalue(name), [], random.Random(1)
    byte = next(i for token, i in tokenizer.get_vocab().items() if token in ("ÿ", "<0xFF>"))
    decode = tokenizer.decode
    texts = [[rng.randrange(len(tokenizer)) for _ in range(2000)], [byte] * 2000]
    expected = [decode(ids, skip_special_tokens=True) for ids in texts]
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: decoded.append(len(ids)) or decode(ids, **how))
    for ids, text in zip(texts, expected, strict=True):
        decoded.clear()
        written = Written(tokenizer, [], lambda text: None)
        write(written, ids)
        assert written.text == text
        assert sum(decoded) < 20 * len(ids)


def first_stop(text: str, stops: list[str]) -> str:
    """Letter by letter: the text up to the string that is complete first."""
    for end in range(len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))]
    return text


def test_stop_strings_are_those_of_a_search_letter_by_letter():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(30)))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 7))) for _ in range(rng.randrange(5))]
        looking, sent, stopped, rest = StopStrings(stops), "", False, text
        while rest and not stopped:
            piece, rest = rest[: (n := rng.randrange(1, 5))], rest[n:]
            certain, stopped = looking.feed(piece)
            sent += certain
        assert sent + ("" if stopped else looking.rest()) == first_stop(text, stops)


def test_long_stop_string_that_almost_comes_again_and_again():
    """300,000 letters, as long a text, in pieces of three: a search that begins anew each time would not end here."""
    stop = "a" * 300_000 + "b"
    looking = StopStrings([stop])
    sent = [looking.feed("aaa")[0] for _ in range(100_001)]
    assert "".join(sent) == "aaa"
    assert looking.feed("b") == ("", True)
