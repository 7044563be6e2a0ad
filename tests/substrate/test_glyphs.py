from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from treering.substrate.font import unifont
from treering.substrate.glyphs import cell_size, draw, look_alikes, token_texts


def text_of(tokenizer, token):
    return token_texts(tokenizer)[tokenizer.convert_tokens_to_ids(token)]


def raw_bytes(texts):
    """Bytes of token texts, partial characters given as <0xNN>."""
    pieces = re.split(r"(<0x[0-9A-F]{2}>)", "\0".join(texts))
    data = b"".join(bytes([int(p[3:5], 16)]) if re.fullmatch(r"<0x..>", p) else p.encode() for p in pieces)
    return data.replace(b"\0", b"")


def bitmap(text):
    """A text as 16 rows of pixels, read straight from the font's columns."""
    font = unifont()
    return np.unpackbits(font.columns[font.layout(text)].T.copy(), axis=1)


def test_every_id_has_a_text(literal, byte_level, byte_fallback, unigram, wordpiece):
    for tokenizer in (literal, byte_level, byte_fallback, unigram, wordpiece):
        assert len(token_texts(tokenizer)) == max(tokenizer.get_vocab().values()) + 1


def test_literal_tokens_are_their_text(literal):
    for token in (" the", "不同", "😀", "<0x80>", "<unused_7>", "</s>", "\n"):
        assert text_of(literal, token) == token


def test_byte_level_tokens_are_read_as_utf8(byte_level, split_byte_level):
    assert text_of(byte_level, "Ġthe") == " the"
    assert text_of(byte_level, "Ċ") == "\n"
    assert text_of(byte_level, "ä") == "<0xE4>"
    assert text_of(byte_level, "<|endoftext|>") == "<|endoftext|>"
    assert text_of(split_byte_level, "Ġa") == " a"
    assert text_of(split_byte_level, "ä¸") == "<0xE4><0xB8>"
    assert text_of(split_byte_level, "ä¸Ń") == "中"
    assert text_of(split_byte_level, "<｜end▁of▁sentence｜>") == "<｜end▁of▁sentence｜>"


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0<"), max_size=30))
def test_byte_level_texts_join_to_the_text(byte_level, text):
    texts = token_texts(byte_level)
    assert raw_bytes(texts[i] for i in byte_level(text, add_special_tokens=False)["input_ids"]) == text.encode()


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0<▁"), min_size=1, max_size=30))
def test_byte_fallback_texts_join_to_the_text(byte_fallback, text):
    texts = token_texts(byte_fallback)
    ids = byte_fallback(text, add_special_tokens=False)["input_ids"]
    assert raw_bytes(texts[i] for i in ids) == (" " + text).encode()


def test_metaspace_wordpiece_and_end_of_word(byte_fallback, unigram, wordpiece, end_of_word):
    assert text_of(byte_fallback, "▁ab") == " ab"
    assert text_of(byte_fallback, "<0xE4>") == "<0xE4>"
    assert text_of(byte_fallback, "<s>") == "<s>"
    assert not any("▁" in text for text in token_texts(unigram))
    assert [text_of(wordpiece, t) for t in ("ing", "##ing", "##", "#", "[CLS]")] == [
        "ing",
        "ing",
        "##",
        "#",
        "[CLS]",
    ]
    assert [text_of(end_of_word, t) for t in ("at", "at</w>", "Ã©</w>")] == ["at", "at ", "é "]


def test_ids_without_a_token_are_blank(literal):
    class Sparse:
        backend_tokenizer = literal.backend_tokenizer
        added_tokens_decoder: dict = {}  # noqa: RUF012

        def get_vocab(self):
            return {"a": 0, "b": 3}

    assert token_texts(Sparse()) == ["a", "", "", "b"]


def test_font_covers_the_plane():
    font = unifont()
    assert len(font.columns) == 1 + 7_199 + 2 * 49_887
    assert len(font.glyphs) == 57_086
    assert font.layout("A中")[1:] == list(font.glyphs["中"])
    assert font.layout("😀") == [0, 0]  # beyond the plane: a blank of full width
    assert font.lacking(["a😀", "\ue000", " ", "", "中b"]) == 2
    assert bytes(np.packbits(bitmap("A"), axis=1)[:, 0]).hex().upper() == "0000000018242442427E424242420000"


def test_a_cell_as_large_as_the_glyph_is_the_glyph():
    for character in "中한ぁ":
        assert (draw([character], 16).reshape(16, 16) == bitmap(character)).all()
    assert (draw(["中"], 32).reshape(32, 32)[::2, ::2] == bitmap("中")).all()


@pytest.mark.parametrize("cell", [8, 32, 50, 64])
@pytest.mark.parametrize("text", ["A", "中", "ing", "不同", "<unused_57344>", " " * 40 + "x" * 30])
def test_cells_are_pillow_s_bilinear_resize(text, cell):
    ink = Image.fromarray(bitmap(text) * np.uint8(255)).convert("F")
    exact = np.asarray(ink.resize((cell, cell), Image.Resampling.BILINEAR)) / 255
    ours = draw([text], cell).reshape(cell, cell)
    clear = np.abs(exact - 0.5) > 1e-5
    assert clear.mean() > 0.7
    assert (ours == (exact >= 0.5))[clear].all()
    assert ours[~clear].all()  # exactly half is ink


def test_batches_do_not_change_cells():
    texts = ["a", "bc", "中", "", "  ", "d", "的中"] * 30
    assert (draw(texts, 32) == np.concatenate([draw([text], 32) for text in texts])).all()


def test_blank_and_look_alike():
    cells = draw(["A", " ", "А", "", "Α", "b", "😀"], 32)
    assert not cells[[1, 3, 6]].any()
    assert look_alikes(cells) == [[0, 2, 4], [1, 3, 6]]


def test_cell_sizes():
    assert [cell_size(d) for d in (1, 256, 1024, 1025, 4096, 4097, 9217)] == [32, 32, 32, 64, 64, 96, 128]
