from __future__ import annotations

import pytest

from treering.report import as_png_url, as_svg, heat_map, loss_curves, overlaps, render, scores

HISTORY = [
    {"loss": 5.0, "bits_per_byte": 2.5, "tokens": 1000},
    {"loss": 4.0, "bits_per_byte": 2.0, "tokens": 2000},
    {"eval_loss": 4.5, "eval_bits_per_byte": 2.2, "tokens": 2000},
]
ROWS = [
    {"model": m, "text": t, "bits_per_byte": 2.0, "low": 1.9, "high": 2.2}
    for t in ("ru", "zh")
    for m in ("a", "b", "c")
]


def test_loss_curves_show_training_and_validation_of_each_run():
    axes = loss_curves({"ru": HISTORY, "zh": HISTORY}).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.001, 0.002], [0.002]] * 2
    assert list(axes.lines[1].get_ydata()) == [2.2]


def test_scores_draw_a_bar_for_each_row():
    axes = scores(ROWS).axes[0]
    assert len(axes.patches) == len(ROWS)
    assert [patch.get_width() for patch in axes.patches] == [2.0] * 6


def test_a_value_stands_in_its_bar_and_no_line_before_it():
    figure = scores(ROWS)
    values = [text for text in figure.axes[0].texts if text.get_text() == "2.00"]
    assert len(values) == len(ROWS)
    assert all(text.xy[0] == 0 and text.get_color() == "white" for text in values)


def test_gains_are_drawn_against_overlap_with_texts_across_and_rules_down():
    lines = {("evidence", 1): {None: 0.01}, ("evidence", 2): {1: 0.03, 0: 0.02}, ("mean", 2): {0: -0.5, 1: -0.4}}
    figure = overlaps({"ru": lines, "zh": lines})
    assert [axes.get_title() for axes in figure.axes] == ["ru", "zh", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["evidence", "", "mean", ""]
    drawn = [[list(line.get_ydata()) for line in axes.lines] for axes in figure.axes]
    assert drawn == [[[1, 1], [2, 3], [0, 0]]] * 2 + [[[-50, -40], [0, 0]]] * 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["1 of each kind", "2 of each kind"]


def test_an_embedded_figure_has_no_ground_and_no_ink_of_its_own():
    svg = as_svg(heat_map(["a", "b"], ["ru"], [[(1.0, 1.0)], [(2.0, 0.0)]]), "heat")
    assert "fill: #ffffff; stroke: none" not in svg  # a white ground would glare in the dark
    assert ["#ffffff" in piece or "white" in piece for piece in svg.split("<text")[-2:]] == [True, False]


def test_embedded_figures_need_no_file():
    figure = loss_curves({"ru": HISTORY})
    assert as_svg(figure, "loss").startswith("<svg")
    assert as_png_url(figure).startswith("data:image/png;base64,iVBOR")


def test_svg_is_the_same_for_the_same_figure():
    assert as_svg(scores(ROWS), "a") == as_svg(scores(ROWS), "a")
    assert "bits per byte" in as_svg(scores(ROWS), "a")


def test_a_page_that_misses_a_value_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        render("demo")
