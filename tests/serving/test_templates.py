"""Chat templates are programs of strangers."""

from __future__ import annotations

import pytest

from treering.serving.templates import Renderer, TemplateError

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def renderer():
    made = []

    def make(template: str, longest: int = 1000) -> Renderer:
        made.append(Renderer(template, {"eos_token": "</s>"}, longest, seconds=0.5))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (messages|length * 10 ** 10) }}",  # one operation, which nothing in Python can break off
        "{{ 'a' * 10 ** 10 }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ '\\ud800' }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
)
def test_template_that_fails_or_does_not_end(renderer, template):
    """It costs the one conversation; others are laid out by the same renderer."""
    template = "{% if messages[0].content == 'Hello' %}" + template + "{% else %}{{ messages[0].content }}{% endif %}"
    rendering = renderer(template)
    for _ in range(2):
        with pytest.raises(TemplateError):
            rendering.render(HELLO)
    if "{% if %}" not in template:
        assert rendering.render([{"role": "user", "content": "Bye\u2028\n"}]) == "Bye\u2028\n"


def test_text_is_cut_off_where_it_is_too_long_anyway(renderer):
    assert renderer("{{ 'ab' * 10 ** 6 }}", longest=7).render(HELLO) == "abababab"


def test_names_of_the_tokenizer(renderer):
    assert renderer("{{ messages[0].content }}{{ eos_token }}\n{{ add_generation_prompt }}").render(HELLO) == (
        "Hello</s>\nTrue"
    )


def test_nothing_is_imported_from_where_the_server_was_started(tmp_path, monkeypatch, renderer):
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "treering").mkdir()
    monkeypatch.chdir(tmp_path)
    assert renderer("{{ messages[0].content }}").render(HELLO) == "Hello"
