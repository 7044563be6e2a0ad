from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from treering.errors import TreeringError
from treering.plain_yaml import DEEPEST, parse


def refused(text: str) -> str:
    with pytest.raises(TreeringError) as caught:
        parse(text, "r.yaml")
    return str(caught.value)


def test_what_it_reads() -> None:
    text = "a: 1\nb: [1_000, 1.5e+3, true, ~, 'x', \"\\n\"]\nc: &c {d: 2024-01-31}\ne: *c\nf: {<<: *c, g: 0x10}\n"
    assert parse(text, "r.yaml")[0] == {
        "a": 1,
        "b": [1000, 1500.0, True, None, "x", "\n"],
        "c": {"d": "2024-01-31"},  # text, not a date
        "e": {"d": "2024-01-31"},
        "f": {"d": "2024-01-31", "g": 16},
    }
    assert parse("# nothing\n", "r.yaml") == ({}, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: !!bool x", ":2: 'x' is not bool"),
        ("a: !!int 0x", ":1: '0x' is not int"),
        ("a: !!float x", ":1: 'x' is not float"),
        ("a: <<", ":1: '<<' is not merge"),
        ("a:\n- !!timestamp 2024-99-99", ":2: text, numbers, true or false, lists and fields may stand here"),
        ("a: !!set {b}", "not !!set"),
        ("a: !!python/object:os.system ls", "not !!python/object:os.system"),
        ("a: 1\nb: 2\na: 3", ":3: a stands here again, after line 1"),
        ("a: 1\n2: 3", ":2: the name of a field must be text"),
        ("a: 1\n? [x]\n: 3", ":2: the name of a field must be text"),
        ("? a: 1\n: 3", ":1: the name of a field must be text"),
        ("yes: 1", "the name of a field must be text"),
        ("a: 1\n\tb: 2", ":2: not valid YAML"),
        ("a: 1\nb: \x07", ":2: not valid YAML: the character U+0007"),
        ('a: "\\ud800"', ":1: text with the character U+D800"),
        ('a: "\\e[31m"', ":1: text with the character U+001B"),
        ('"a\\0": 1', ":1: text with the character U+0000"),
        ("a: " + "9" * 10_000, ":1: a number of 10,000 characters"),
        ("a: " + "9" * 30, "is beyond 64 bits"),
        ("a: 1" + ":59" * 30, "is beyond 64 bits"),
        ("a: *b", ":1: not valid YAML: found undefined alias 'b'"),
        ("a: &a [*a]", ":1: an alias stands inside what it is an alias of"),
        ("a: &a\n  <<: *a", "an alias stands inside what it is an alias of"),
        ("--- 1\n--- 2", ":2: not valid YAML: but found another document"),
        ("a: 'x", "not valid YAML"),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"nested more than {DEEPEST} levels deep"),
        ("[" * 3_000, "nested too deeply"),
        ("{a: " * 3_000, "nested too deeply"),
        ("- " * 3_000, "nested too deeply"),
    ],
)
def test_what_it_refuses(text: str, expected: str) -> None:
    message = refused(text)
    assert expected in message
    assert message.startswith("r.yaml")


@pytest.mark.parametrize("kind", ["list", "merge"])
def test_aliases_of_aliases_cost_nothing(kind: str) -> None:
    """A billion values in a few lines ("billion laughs")."""
    lines = ["a0: &a0 {x0: y}"]
    for level in range(1, 12):
        aliases = ", ".join(f"*a{level - 1}" for _ in range(9))
        lines.append(f"a{level}: &a{level} " + (f"[{aliases}]" if kind == "list" else f"{{<<: [{aliases}]}}"))
    assert re.search(r":\d+: more than 100,000 values", refused("\n".join(lines)))


def test_aliases_that_nest_deeper_than_the_text() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 200)]
    assert f":{DEEPEST}: nested more than {DEEPEST} levels deep" in refused("\n".join(lines))


YAML = st.text(st.sampled_from(list("ab12 \n\t:-[]{},&*!|>'\"#%@`?<.~0xe_\\\ud7ff")), max_size=60)


@given(YAML | st.text(max_size=30))
def test_any_text_is_read_as_yaml_reads_it_or_told(text: str) -> None:
    try:
        value, _ = parse(text, "r.yaml")
    except TreeringError as error:
        assert str(error).startswith("r.yaml")
    else:
        assert value == {} or "=" in text or repr(value) == repr(yaml.safe_load(text))  # a lone = is text here
