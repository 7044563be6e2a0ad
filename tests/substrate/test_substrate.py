from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from treering import tokenizer as tokenizers
from treering.errors import TreeringError
from treering.substrate import Recipe, build, load, rebuild, require_same, verify
from treering.substrate.substrate import MATRIX_FILE, RECIPE_FILE

PINNED = {
    ("glyph", "pca"): "0570c862d72b92d07523033ef6397c5ca0f2cc409719e35a23f77f50b0a878dd",
    ("glyph", "hadamard"): "f36d15ccd2f884ad479e1a58115672f758e34ad3ccd7e322df0e7a14f7ba3eee",
    ("glyph", "pixels"): "6849c8d9e0129dfd21f3465c4a20b3fbfc3cca5c75d573fefc7d347bcf2b83ff",
    ("code", "pca"): "80de79481d036adcebaf344abb089b41d95bbe338f9b10d188bb6e7ba416c74f",
    ("random", "pca"): "fe565407da9528411358d16ca4abaa3db1128cff9a301c4bfe33bcf4bad0b5a4",
    ("trainable", "pca"): "14580b84f64d979fc17b432542e42878cacb31e3f2e60cca94723884856bbe25",
}


@pytest.fixture
def saved(literal, tmp_path):
    build(literal, 64, cell=16).save(tmp_path, literal)
    return tmp_path


def index(tokenizer, token):
    return tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize(("kind", "projection"), PINNED)
def test_fingerprints_are_pinned(literal, kind, projection):
    made = build(literal, 96, kind, projection=projection)
    assert made.fingerprint == PINNED[kind, projection]
    assert made.matrix.shape == (len(literal), 96) and made.matrix.dtype == torch.float32
    assert made.matrix.is_contiguous() and torch.allclose(made.matrix.norm(dim=1), torch.ones(len(literal)), atol=1e-5)
    assert made.report["reproducible"] and made.report["identical_rows"] == 0
    assert made.frozen == (kind != "trainable")


def test_the_fingerprint_is_recipe_and_bytes(literal):
    made = build(literal, 32, "code")
    canonical = (
        f'{{"bits":16,"d_model":32,"kind":"code","tokenizer":"{tokenizers.identity(literal)}",'
        f'"version":1,"vocab":{len(literal)}}}\n'
    )
    data = made.matrix.numpy().astype("<f4").tobytes()
    assert made.fingerprint == hashlib.sha256(canonical.encode() + data).hexdigest()


def test_every_choice_changes_the_fingerprint(literal, wordpiece):
    options = [
        {},
        {"projection": "hadamard"},
        {"collisions": "keep"},
        {"cell": 16},
        {"kind": "code"},
        {"kind": "random"},
        {"kind": "random", "seed": 1},
        {"kind": "trainable"},
    ]
    prints = [build(literal, 40, **{"kind": "glyph", **option}).fingerprint for option in options]
    prints += [build(literal, 41, "code").fingerprint, build(wordpiece, 40, "code").fingerprint]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("d_model", [16, 100, 1030])
@pytest.mark.parametrize("projection", ["pca", "hadamard"])
def test_look_alikes_are_told_apart(literal, projection, d_model):
    marked = build(literal, d_model, projection=projection, cell=16)
    kept = build(literal, d_model, projection=projection, cell=16, collisions="keep")
    latin, greek, cyrillic = (index(literal, token) for token in ("A", "Α", "А"))
    blank = [index(literal, token) for token in (" ", "\xa0", "\u3000", "😀", "🦊")]
    assert len({tuple(kept.matrix[i].tolist()) for i in (latin, greek, cyrillic)}) == 1
    assert len({tuple(kept.matrix[i].tolist()) for i in blank}) == 1
    assert (marked.matrix[min(latin, greek, cyrillic)] == kept.matrix[latin]).all()
    assert torch.pdist(marked.matrix[[latin, greek, cyrillic]]).min() > 0.05
    assert torch.pdist(marked.matrix[blank]).min() > 0.04
    assert marked.report["identical_rows"] == 0 and marked.report["blank_tokens"] == len(blank)
    assert kept.report["identical_rows"] >= kept.report["look_alike_tokens"] - kept.report["look_alike_groups"] > 0
    assert marked.report["marked_tokens"] == marked.report["look_alike_tokens"] - marked.report["look_alike_groups"]
    assert marked.report["tokens_with_missing_characters"] == 2
    assert kept.report["nearest_rows"] == 0 and marked.report["nearest_rows"] > 0.01


def test_nearest_rows_is_the_brute_force_minimum(literal):
    made = build(literal, 32, "random", seed=3)
    assert made.report["nearest_rows"] == pytest.approx(torch.pdist(made.matrix.double()).min().item(), abs=1e-4)


def test_every_tokenizer_family_builds(byte_level, split_byte_level, byte_fallback, unigram, wordpiece, end_of_word):
    for tokenizer in (byte_level, split_byte_level, byte_fallback, unigram, wordpiece, end_of_word):
        for projection in ("pca", "hadamard", "pixels"):
            made = build(tokenizer, 200, projection=projection, cell=14)
            assert torch.isfinite(made.matrix).all() and made.report["identical_rows"] == 0
            assert torch.allclose(made.matrix.norm(dim=1), torch.ones(len(made.matrix)), atol=1e-5)


def test_save_load_verify(literal, tmp_path):
    for kind in ("glyph", "code", "random", "trainable"):
        directory = tmp_path / kind
        directory.mkdir()
        made = build(literal, 48, kind, seed=5, cell=16, collisions="keep")
        made.save(directory, literal)
        again = load(directory)
        assert again.fingerprint == made.fingerprint and again.recipe == made.recipe and again.report == made.report
        assert torch.equal(again.matrix, made.matrix) and again.frozen == made.frozen
        assert rebuild(literal, again.recipe).fingerprint == made.fingerprint
        found = verify(directory)
        assert found.ok and found.rebuilt == found.fingerprint == made.fingerprint
        assert tokenizers.identity(tokenizers.load(directory)) == made.recipe.tokenizer


def test_the_wrong_tokenizer_is_refused_by_name(literal, wordpiece, tmp_path):
    made = build(literal, 32, "code")
    require_same(made, literal)
    with pytest.raises(TreeringError) as caught:
        made.save(tmp_path, wordpiece)
    for identity in (tokenizers.identity(literal), tokenizers.identity(wordpiece), made.fingerprint):
        assert identity in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_damage_is_noticed(saved):
    path = saved / MATRIX_FILE
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(TreeringError, match="damaged or cut short"):
            load(saved)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TreeringError, match="not the substrate it says it is"):
        load(saved)
    path.write_bytes(whole)
    load(saved)
    save_file({"matrix": load_file(path)["matrix"].half()}, path)
    with pytest.raises(TreeringError, match="should hold a float32 matrix"):
        load(saved)
    path.unlink()
    with pytest.raises(TreeringError, match="is missing"):
        load(saved)


def test_an_edited_recipe_is_noticed(saved):
    path = saved / RECIPE_FILE
    document = json.loads(path.read_text())
    for change, message in [
        ({"collisions": "keep"}, "not the substrate it says it is"),
        ({"d_model": 65}, "should hold a float32 matrix"),
        ({"version": 2}, "version 2"),
        ({"colour": 1}, "unknown colour"),
    ]:
        path.write_text(json.dumps({**document, "recipe": {**document["recipe"], **change}}))
        with pytest.raises(TreeringError, match=message):
            load(saved)
    for text in ("{", "[]", "{}", '{"recipe": {}, "fingerprint": ""}'):
        path.write_text(text)
        with pytest.raises(TreeringError):
            load(saved)
    path.unlink()
    with pytest.raises(TreeringError, match="not a substrate"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"recipe": []}, "recipe: input should be a valid dictionary"),
        ({"fingerprint": 3}, "fingerprint: input should be a valid string"),
        ({"fingerprint": "\x1b[31m"}, "fingerprint: string should match"),
        ({"report": [1]}, "report: input should be a valid dictionary"),
        ({"report": {"rank": "[red]many"}}, "report.rank"),
        ({"report": {"rank": [[1]]}}, "report.rank"),
        ({"report": {"\x1b[31m": 1}}, r"report.\x1b[31m"),
        ({"report": {"rank": float("nan")}}, "finite"),
        ({"vocab": "700"}, "vocab: Input should be a valid integer"),
        ({"vocab": True}, "vocab: Input should be a valid integer"),
        ({"vocab": -1}, "vocab: Input should be greater than or equal to 1"),
        ({"vocab": 10**30}, "vocab: Input should be less than"),
        ({"vocab": 2**31 - 1, "d_model": 2**24}, "should hold a float32 matrix of (2147483647, 16777216)"),
        ({"vocab": 1, "d_model": 1}, "should hold a float32 matrix of (1, 1)"),
        ({"d_model": 10**12}, "d_model: Input should be less than"),
        ({"d_model": None}, "d_model: Input should be a valid integer"),
        ({"kind": "picture"}, "kind: Input should be 'glyph', 'code', 'random' or 'trainable'"),
        ({"kind": {}}, "kind: Input should be"),
        ({"tokenizer": "a\x1b[2J"}, "tokenizer: String should match"),
        ({"cell": 10**6}, "A cell at d_model 64 has from 1 to 64 pixels on a side, not 1000000"),
        ({"bits": 10**9}, "bits: Input should be less than"),
        ({"seed": -1}, "seed: Input should be greater than"),
        ({"seed": 2**64}, "seed: Input should be less than"),
        ({"version": {"\x1b[31m": 1}}, r"version {'\x1b[31m': 1}"),
        ({"\u202e": 1}, r"unknown \u202e"),
    ],
)
def test_what_no_substrate_says_is_told(saved, change, expected):
    path = saved / RECIPE_FILE
    document = json.loads(path.read_text())
    top = {name: value for name, value in change.items() if name in document}
    within = {name: value for name, value in change.items() if name not in document}
    changed = document | {"recipe": document["recipe"] | within} | top
    path.write_text(json.dumps(changed))
    for read in (load, verify):
        with pytest.raises(TreeringError) as caught:
            read(saved)
        assert expected in str(caught.value)


def test_rows_that_are_no_numbers_are_told(saved):
    from treering.substrate.substrate import Substrate, _fingerprint

    made = load(saved)
    for wrong in (float("nan"), float("inf")):
        matrix = made.matrix.clone()
        matrix[2, 1] = wrong
        save_file({"matrix": matrix}, saved / MATRIX_FILE)
        document = json.loads((saved / RECIPE_FILE).read_text())
        document["fingerprint"] = Substrate(
            matrix, made.recipe, {}, _fingerprint(made.recipe, matrix.numpy())
        ).fingerprint
        (saved / RECIPE_FILE).write_text(json.dumps(document))
        with pytest.raises(TreeringError, match="no finite numbers"):
            load(saved)


def test_a_file_cut_short_later_does_not_matter(saved):
    """A mapped one would kill the process."""
    made = load(saved)
    before = made.matrix.clone()
    (saved / MATRIX_FILE).open("r+b").truncate(100)
    assert torch.equal(made.matrix, before)


@pytest.mark.parametrize("name", [MATRIX_FILE, RECIPE_FILE])
def test_links_are_not_followed(saved, name):
    (saved / name).rename(saved.parent / "elsewhere")
    (saved / name).symlink_to(saved.parent / "elsewhere")
    with pytest.raises(TreeringError, match="is a link"):
        load(saved)


def test_a_header_that_claims_much_is_told(saved):
    path = saved / MATRIX_FILE
    path.write_bytes((2**31).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(TreeringError, match="damaged or cut short"):
        load(saved)
    path.write_bytes(path.read_bytes() + bytes(2**21))
    with pytest.raises(TreeringError, match=r"should hold a float32 matrix of .*, but has"):
        load(saved)


def test_verify_says_what_differs(saved, literal, wordpiece):
    made = load(saved)
    forged = made.matrix.clone()
    forged[3] = -forged[3]
    from treering.substrate.substrate import Substrate, _fingerprint

    fake = Substrate(forged, made.recipe, made.report, _fingerprint(made.recipe, forged.numpy()))
    fake.save(saved, literal)
    found = verify(saved)
    assert not found.ok and found.rebuilt == made.fingerprint
    assert found.differences[0].startswith(f"1 of {len(forged)} rows differ, by up to ")
    wordpiece.save_pretrained(saved)
    found = verify(saved)
    assert not found.ok and tokenizers.identity(wordpiece) in found.differences[0]


def test_uncertain_components_are_reported(wordpiece):
    class Pair:
        backend_tokenizer = wordpiece.backend_tokenizer
        added_tokens_decoder: dict = {}  # noqa: RUF012

        def get_vocab(self):
            return {"一": 0, "丨": 1}

    from treering.substrate.projection import pca_basis

    assert not pca_basis(np.eye(4, 9, dtype=np.uint8), 4)[1].certain  # a regular simplex has no preferred axes
    made = build(Pair(), 16, cell=16)
    assert made.report["rank"] == 1 and made.report["reproducible"]
    assert torch.allclose(made.matrix[0], -made.matrix[1]) and made.matrix[0, 1:].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bitmap"}, "Unknown kind 'bitmap'; choose one of glyph, code"),
        ({"projection": "ica"}, "Unknown projection"),
        ({"collisions": "drop"}, "Unknown collisions"),
        ({"d_model": 0}, "at least 1"),
        ({"d_model": 15}, "16-bit mark"),
        ({"d_model": 15, "kind": "code"}, "too small"),
        ({"d_model": 60, "projection": "pixels"}, "at least 64"),
        ({"d_model": 64, "projection": "pixels", "cell": 9}, "does not fit"),
        ({"cell": 0}, "from 1 to 64 pixels"),
        ({"kind": "random", "seed": -1}, "seed"),
    ],
)
def test_bad_choices_are_refused(wordpiece, options, message):
    with pytest.raises(TreeringError, match=message):
        build(wordpiece, **{"d_model": 64, **options})


def test_recipes_round_trip():
    recipe = Recipe("abc", 5, 7, "random", seed=0)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict() == {
        "tokenizer": "abc",
        "vocab": 5,
        "d_model": 7,
        "kind": "random",
        "seed": 0,
        "version": 1,
    }
