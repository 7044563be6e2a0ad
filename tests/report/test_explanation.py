"""The page that says who knew which word, in a browser: by the mouse, by the keyboard, on a phone, in grey."""

from __future__ import annotations

import pytest
import torch

from treering.evaluation import Attribution
from treering.report.explanation import LINES, explanation, leader, painted

TEXT = "Open the menu and choose the file. Откройте меню и выберите файл. " * 3
NAMES = ("an expert with a long name, longer than a phone is wide, as people do", "ru")


@pytest.fixture(scope="module")
def attribution():
    """Words, of which the first expert foresees the Latin ones and the second the others; neither foresees "the"."""
    spans, at = [], 0
    for word in TEXT.split(" ")[:-1]:
        spans.append((at, at + len(word) + 1))
        at += len(word) + 1
    words = [TEXT[start:end].strip() for start, end in spans]
    likelihood = torch.tensor(
        [
            [-1.0 if word.isascii() else -9.0 for word in words],
            [-1.0 if not word.isascii() or word == "the" else -9.0 for word in words],
        ]
    ).double()
    weights = torch.full_like(likelihood, 0.5).log()
    return Attribution(TEXT, NAMES, "mean", tuple(spans), weights, likelihood, likelihood.logsumexp(0) - 0.7)


def test_each_expert_has_a_line_beside_its_colour_and_who_did_not_know_it_has_none(attribution):
    shown = painted(attribution)
    assert [expert["line"] for expert in shown["experts"]] == LINES[:2]
    lines = {piece["text"].strip(): piece["line"] for piece in shown["pieces"]}
    assert (lines["Open"], lines["the"], lines["файл."]) == (LINES[0], "", LINES[1])
    assert (leader([0.5, 0.5]), leader([0.1, 0.9])) == (None, 1)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_words_are_reached_by_the_keyboard_and_their_numbers_are_never_cut(
    attribution, visit, faults, tmp_path, width, scheme
):
    (tmp_path / "page.html").write_text(explanation(attribution, "treering explain"), encoding="utf-8")
    page = visit(f"file://{tmp_path / 'page.html'}#t5", width, scheme)

    def focused():
        return page.evaluate("document.activeElement.id")

    def tip_is_inside():
        left, right = page.evaluate(
            "(box => [box.left, box.right])(document.getElementById('tip').getBoundingClientRect())"
        )
        return 0 <= left < right <= width

    assert focused() == "t5" and tip_is_inside()
    assert page.evaluate("document.querySelectorAll('.text [tabindex=\"0\"]').length") == 1
    for key, expected in (("ArrowRight", "t6"), ("ArrowLeft", "t5"), ("Home", "t1"), ("End", "t36")):
        page.keyboard.press(key)
        assert focused() == expected and tip_is_inside()
        word = page.locator(f"#{expected}")
        assert page.locator("#tip").text_content().startswith(f"“{word.text_content()}”")
    page.keyboard.press("ArrowUp")
    above = page.locator(f"#{focused()}").bounding_box()
    assert above["y"] < page.locator("#t36").bounding_box()["y"]
    page.keyboard.press("ArrowDown")
    assert page.locator(f"#{focused()}").bounding_box()["y"] > above["y"]
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.locator("#t3").click()
    assert page.locator("#tip").text_content().startswith("“menu") and tip_is_inside()
    assert faults(page) == []
