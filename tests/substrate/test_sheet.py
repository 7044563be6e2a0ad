from __future__ import annotations

import numpy as np
import pytest

from treering.errors import TreeringError
from treering.substrate import build, draw_sheet
from treering.substrate.glyphs import draw, token_texts
from treering.substrate.sheet import sample_tokens


def pictures(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_the_sheet_shows_cells_and_what_is_kept(literal):
    chosen = [literal.convert_tokens_to_ids(token) for token in ("A", "中", " the")]
    made = build(literal, 200, cell=16)
    shown = pictures(draw_sheet(literal, made, chosen))
    steps = 1 + 4  # the cell; 8, 32, 128 and all components
    assert len(shown) == steps * len(chosen)
    cells = draw(token_texts(literal), 16)[chosen].reshape(3, 16, 16)
    for place in range(3):
        assert (1 - shown[place] == cells[place]).all()
        errors = [np.abs(1 - shown[3 * step + place] - cells[place]).mean() for step in range(1, steps)]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1


def test_a_sheet_before_building(literal, tmp_path):
    figure = draw_sheet(literal, 64)
    assert len(pictures(figure)) == 4 * 24
    figure.savefig(tmp_path / "sheet.svg")


def test_samples_are_of_several_scripts(literal, wordpiece):
    texts = [token_texts(literal)[i] for i in sample_tokens(token_texts(literal))]
    assert len(texts) == len(set(texts)) == 24
    for low, high in (("A", "z"), ("А", "я"), ("一", "鿿"), ("가", "힣"), ("Α", "ω")):
        assert any(all(low <= letter <= high for letter in text.strip()) for text in texts if text.strip())
    assert 0 < len(sample_tokens(token_texts(wordpiece))) <= len(wordpiece)


def test_what_cannot_be_drawn(literal):
    with pytest.raises(TreeringError, match="no glyphs"):
        draw_sheet(literal, build(literal, 32, "code"))
    with pytest.raises(TreeringError, match="token IDs from 0"):
        draw_sheet(literal, 64, [10**6])
    with pytest.raises(TreeringError, match="at least 1"):
        draw_sheet(literal, 0)
