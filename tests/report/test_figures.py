from __future__ import annotations

import pytest

from treering.report import as_png_url, as_svg, by_depth, loss_curves, overlaps, render, scatter, scores
from treering.report.figures import COLOURS, DASHES, MARKERS

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


def test_stages_are_marked_where_they_begin_and_named():
    history = [{**entry, "stage": stage} for stage in (1, 2) for entry in HISTORY]
    history = [{**entry, "tokens": entry["tokens"] + 2000 * (entry["stage"] - 1)} for entry in history]
    axes = loss_curves({"ru": history}, {1: "1 block", 2: "2 blocks"}).axes[0]
    assert {text.get_text(): text.xy[0] for text in axes.texts} == {"1 block": 0, "2 blocks": 0.002}
    assert [text.get_text() for text in loss_curves({"ru": history}).axes[0].texts] == ["stage 1", "stage 2"]
    assert loss_curves({"ru": HISTORY}).axes[0].texts[:] == []


def test_a_long_curve_is_thinned():
    history = [{"loss": 1.0, "bits_per_byte": 1.0, "tokens": n} for n in range(5000)]
    assert len(loss_curves({"ru": history}).axes[0].lines[0].get_xdata()) == 1667


def test_abilities_have_a_panel_for_each_measure_and_a_line_for_each_text():
    found = [
        {"model": stage, "text": text, "measure": measure, "value": 0.5, "low": 0.4, "high": 0.7}
        for measure in ("bits per byte", "recall")
        for text in ("ru", "zh")
        for stage in (0, 1)
    ]
    panels = by_depth(found, ["1 block", "2 blocks"]).axes
    assert [panel.get_title() for panel in panels] == ["bits per byte", "recall, % right"]
    assert [label.get_text() for label in panels[1].get_xticklabels()] == ["1 block", "2 blocks"]
    assert [list(bars[0].get_ydata()) for bars in panels[1].containers] == [[50, 50]] * 2
    (low, high), _ = panels[1].containers[0][2][0].get_segments()
    assert (low[1], high[1]) == pytest.approx((40, 70))


def test_points_of_each_kind_have_a_mark_of_their_own():
    axes = scatter({"latin": [(0, 0), (1, 1)], "cjk": [(2, 2)]}).axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [2, 1]
    first, second = (points.get_paths()[0].vertices for points in axes.collections)
    assert first.shape != second.shape


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_stands_out_in_the_light_and_in_the_dark_and_under_white_letters():
    for colour in COLOURS:
        for other, least in (("#fdfcf8", 3), ("#1d1f1c", 3), ("#ffffff", 4.5)):
            low, high = sorted((luminance(colour), luminance(other)))
            assert (high + 0.05) / (low + 0.05) >= least, (colour, other)


def test_lines_are_told_apart_without_colour():
    names = [f"{number}" for number in range(len(MARKERS) * len(DASHES))]
    lines = loss_curves(dict.fromkeys(names, HISTORY)).axes[0].lines[1::2]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(names)


def test_an_embedded_figure_has_no_ground_and_no_ink_of_its_own():
    svg = as_svg(loss_curves({"ru": HISTORY}), "loss", "Loss")
    assert "#ffffff" not in svg  # a white ground would glare in the dark
    assert "#000000" not in svg and "stroke: currentColor" in svg and 'fill="currentColor"' in svg


def test_an_embedded_figure_says_what_it_shows():
    svg = as_svg(loss_curves({"ru": HISTORY}), "loss", "Loss of <ru>", "It falls.")
    begin = svg[: svg.index("<metadata")]
    assert 'role="img" aria-labelledby="loss-title loss-desc"' in begin
    assert '<title id="loss-title">Loss of &lt;ru&gt;</title><desc id="loss-desc">It falls.</desc>' in begin
    assert '<g id="' not in svg
    assert "<desc" not in as_svg(loss_curves({"ru": HISTORY}), "loss", "Loss")


def test_a_name_is_no_formula():
    name = "$\\frac$ <b>"
    svg = as_svg(scores([{**row, "model": name, "text": name} for row in ROWS[:1]]), "a", "Scores")
    assert svg.count("$\\frac$ &lt;b&gt;") == 2
    assert as_png_url(loss_curves({name: HISTORY})).startswith("data:")


def test_embedded_figures_need_no_file():
    figure = loss_curves({"ru": HISTORY})
    assert as_svg(figure, "loss", "Loss").startswith("<svg")
    assert as_png_url(figure).startswith("data:image/png;base64,iVBOR")


def test_svg_is_the_same_for_the_same_figure():
    assert as_svg(scores(ROWS), "a", "Scores") == as_svg(scores(ROWS), "a", "Scores")
    assert "bits per byte" in as_svg(scores(ROWS), "a", "Scores")


def test_a_page_that_misses_a_value_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        render("demo")
