from __future__ import annotations

import json

import pytest

from treering import tokenizer as tokenizers
from treering.errors import TreeringError


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizers.save(tokenizer, tmp_path)
    return tmp_path


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_ids_out_of_all_proportion_are_refused_before_a_table_of_them_is_made(saved):
    def raise_last(values):
        vocabulary = values["model"]["vocab"]
        vocabulary[max(vocabulary, key=vocabulary.get)] = 10**9

    edit(saved / "tokenizer.json", raise_last)
    with pytest.raises(TreeringError, match="the ID 1,000,000,000"):
        tokenizers.load(saved)


def test_gaps_as_large_as_a_layout_needs_are_none(saved, tokenizer):
    def raise_last(values):
        vocabulary = values["model"]["vocab"]
        vocabulary[max(vocabulary, key=vocabulary.get)] = len(vocabulary) + 60_000

    edit(saved / "tokenizer.json", raise_last)
    assert max(tokenizers.load(saved).get_vocab().values()) == len(tokenizer) + 60_000


@pytest.mark.parametrize(
    "content", ["[]", "{}", "5", "[" * 5000, '{"model": {"vocab": {"a": null}}}', '{"model": null}', "\x00", ""]
)
def test_damaged_files_are_told(saved, content):
    (saved / "tokenizer.json").write_text(content)
    with pytest.raises(TreeringError):
        tokenizers.load(saved)


def test_names_of_fields_cannot_reach_the_terminal_raw(saved, capfd):
    token = {"content": "<x>", "\x1b[2J": 1}
    edit(saved / "tokenizer_config.json", lambda values: values.update(added_tokens_decoder={"5": token}))
    with pytest.raises(TreeringError, match=r"a field \\x1b\[2J"):
        tokenizers.load(saved)
    assert "\x1b[2J" not in capfd.readouterr().err


def test_what_the_rust_code_gives_up_on_is_told(saved, monkeypatch):
    class PanicException(BaseException):
        """As tokenizers raises it."""

    def give_up(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr("treering.tokenizer.loading.AutoTokenizer.from_pretrained", give_up)
    with pytest.raises(TreeringError, match="index out of bounds"):
        tokenizers.load(saved)
