from __future__ import annotations

import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.errors import TreeringError
from treering.reading import inside, printable, read_json


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\0b", "..", "a\\..\\b"])
def test_a_name_cannot_lead_out(tmp_path, name):
    with pytest.raises(TreeringError, match="not inside"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x" * 5_000, "a/" + "x" * 300, "\ud800", "x/" * 3_000])
def test_a_name_that_no_file_can_have_is_told(tmp_path, name):
    (tmp_path / "a").mkdir()
    with pytest.raises(TreeringError, match="a name that no file can have"):
        inside(tmp_path, name)


def test_links_and_devices_are_refused_wherever_they_stand(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "directory").symlink_to(tmp_path / "real")
    (tmp_path / "file").symlink_to(tmp_path / "real" / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("directory/file", "file", "pipe"):
        with pytest.raises(TreeringError, match=r"is a link|no ordinary file"):
            inside(tmp_path, name)
    assert inside(tmp_path, "real/file") == tmp_path / "real" / "file"
    assert inside(tmp_path, "real/new/file") == tmp_path / "real" / "new" / "file"


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_a_message(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "file.json"
    path.write_bytes(content)
    try:
        expected = json.loads(content.decode())
    except ValueError:
        with pytest.raises(TreeringError, match="is damaged"):
            read_json(path)
    else:
        assert repr(read_json(path)) == repr(expected)


def test_json_that_costs_more_than_it_may_is_refused(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("[" * 200_000)
    with pytest.raises(TreeringError, match="is damaged"):
        read_json(path)
    with pytest.raises(TreeringError, match="is larger than"):
        read_json(path, most=100_000)
    path.write_text("1" * 10_000)
    with pytest.raises(TreeringError, match="is damaged"):
        read_json(path)
    with pytest.raises(TreeringError, match="is missing"):
        read_json(tmp_path / "file.json" / "below")
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for somebody who writes
    with pytest.raises(TreeringError, match="is missing"):
        read_json(tmp_path / "pipe")


def test_what_is_shown_cannot_act_on_a_terminal():
    assert printable("\x1b]0;owned\x07\x1b[31mred") == r"\x1b]0;owned\x07\x1b[31mred"
    assert printable("safe\u202egpj.exe\u2066\u200b") == r"safe\u202egpj.exe\u2066\u200b"
    assert printable("Лес 森林 naïve") == "Лес 森林 naïve"
    assert printable("x" * 300) == "x" * 200 + "…"


@given(st.text(st.characters(max_codepoint=sys.maxunicode)))
def test_what_is_shown_is_printable(text):
    shown = printable(text)
    assert all(c.isprintable() or c.isspace() for c in shown)
    assert not set(shown) & set("\n\r\t\v\f\x1b\x85\u2028\u2029")
