from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from treering import substrate as substrates
from treering.cli.main import app
from treering.errors import TreeringError
from treering.substrate.glyphs import token_texts
from treering.substrate.nearest import MARKED, OTHERS


@pytest.fixture(scope="module")
def drawn(tokenizer, tmp_path_factory):
    """A glyph substrate on the disk."""
    place = tmp_path_factory.mktemp("substrate") / "glyphs"
    made = substrates.build(tokenizer, 32)
    place.mkdir()
    made.save(place, tokenizer)
    return place


def run(*words):
    return CliRunner().invoke(app, ["substrate", *map(str, words)])


def test_neighbours_are_those_of_a_loop():
    matrix = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 41)[:, None]
    for token, found in zip((3, 17), substrates.neighbours(matrix, [3, 17], 5), strict=True):
        cosines = {}
        for other in range(40):
            if other != token:
                dot = sum(float(a) * float(b) for a, b in zip(matrix[token], matrix[other], strict=True))
                cosines[other] = (
                    dot / math.dist(matrix[token], torch.zeros(7)) / math.dist(matrix[other], torch.zeros(7))
                )
        expected = sorted(cosines, key=lambda other: (-cosines[other], other))[:5]
        assert [near.token for near in found] == expected
        assert [near.cosine for near in found] == pytest.approx([cosines[other] for other in expected], abs=1e-6)


def test_of_equal_rows_the_lower_one_comes_first_and_never_the_row_itself():
    matrix = torch.eye(3)[[0, 0, 0, 1]]
    assert [near.token for near in substrates.neighbours(matrix, [1], 10)[0]] == [0, 2, 3]


def test_tokens_are_found_by_their_text_and_by_their_spelling(tokenizer):
    texts = token_texts(tokenizer)
    index = tokenizer.get_vocab()["Ġthe"]
    assert texts[index] == " the"
    assert substrates.find_tokens(tokenizer, [" the", "Ġthe", "</s>"]) == [index, index, tokenizer.eos_token_id]
    with pytest.raises(TreeringError, match="'zzqq' is no token of this vocabulary: it is cut into 'z'"):
        substrates.find_tokens(tokenizer, ["zzqq"])
    with pytest.raises(TreeringError, match=r"'' is no token of this vocabulary\.$"):
        substrates.find_tokens(tokenizer, [""])


@pytest.mark.parametrize(
    ("text", "script"),
    [(" the", "latin"), ("ф1", "cyrillic"), ("文", "cjk"), ("ひ", "hiragana"), ("ｔ", "latin"), ("한", "hangul"),
     ("42", "digits"), ("«»", "signs"), (" \n", "blanks"), ("", "blanks")],
)  # fmt: skip
def test_scripts_are_named_by_the_first_letter(text, script):
    assert substrates.script_of(text) == script


def test_rare_scripts_are_others_and_marks_are_few():
    alphabets = (
        "abcdefghijkl",
        "абвгдежзийкл",
        "αβγδεζηθικλμ",
        "אבגדהוזחטיכל",
        "ابتثجحخدذرزس",
        "अआइईउऊऋएऐओऔक",
        "あいうえおかきくけこさし",
    )
    texts = [*(letter for letters in alphabets for letter in letters), *"カキ", *("漢字" * 6), *("한글" * 6)]
    named = substrates.named_scripts(texts)
    assert len(set(named)) == MARKED
    assert named[-26] == named[-25] == OTHERS


def test_own_nearest_against_counting():
    matrix = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.05]])
    own, chance = substrates.with_own_nearest(matrix, ["a", "a", "b", "b", "b"])
    assert own == pytest.approx(2 / 5)  # rows 0, 1 and 4 lie together; 4 is nearest to both others
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    assert chance == pytest.approx(sum("aabbb"[i] == "aabbb"[j] for i, j in pairs) / len(pairs))


def test_a_sample_is_seeded_and_a_small_vocabulary_is_whole():
    assert substrates.sample_rows(5, 10) == [0, 1, 2, 3, 4]
    assert substrates.sample_rows(100, 10, seed=1) == substrates.sample_rows(100, 10, seed=1)
    assert len(set(substrates.sample_rows(100, 10))) == 10


def test_command_tells_neighbours_as_table_and_json(drawn, tokenizer):
    told = json.loads(run("neighbours", drawn, "а", "--count", "3", "--json").stdout)
    matrix = substrates.load(drawn).matrix.double().numpy()
    (own,) = substrates.find_tokens(tokenizer, ["а"])
    expected = [int(at) for at in np.argsort(-(matrix @ matrix[own]), kind="stable") if at != own][:3]
    assert [near["token"] for near in told[0]["neighbours"]] == expected
    assert told[0]["neighbours"][0]["text"] == "a"  # Cyrillic а is drawn as Latin a
    table = run("neighbours", drawn, "а", "--count", "3").stdout
    assert "U+0061 LATIN SMALL LETTER A" in table
    assert "no token" in str(run("neighbours", drawn, "zzqq").exception)


def test_command_draws_a_map_by_script(drawn, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    page = tmp_path / "map.html"
    done = run("map", drawn, "-o", page, "--rows", "120")
    assert done.exit_code == 0, done.exception
    text = page.read_text(encoding="utf-8")
    assert "latin (" in text and 'role="img"' in text and "Of 120 rows" in text
    assert "end in .html" in str(run("map", drawn, "-o", tmp_path / "map.png").exception)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert "treering[map]" in str(run("map", drawn, "-o", page).exception)
