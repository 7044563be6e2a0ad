"""A finished command that runs again finds that all is there; another one that would write there is refused."""

from __future__ import annotations

import pytest

from treering import tokenizer as tokenizers
from treering.composition import compose_directories
from treering.errors import TreeringError

TRAINING = "training: {tokens: 1024, batch_tokens: 256, evaluations: 1}\n"


@pytest.fixture
def place(tokenizer, substrate, expert, pages, tmp_path):
    """A directory with a tokenizer, a text, a substrate, a recipe and two experts."""
    tokenizers.save(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    (tmp_path / "text.txt").write_text("\n\n".join(pages["en"]), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("substrate: substrate\ndata: data\nbackbone: {preset: tiny}\n" + TRAINING)
    for seed, name in enumerate("ab"):
        expert(seed, 1).save_pretrained(tmp_path / name)
        tokenizers.save(tokenizer, tmp_path / name)
    return tmp_path


PREPARE = "data prepare text.txt -t tokenizer --block-size 64 -o data"


@pytest.mark.parametrize(
    ("before", "command", "other"),
    [
        (None, "tokenizer train text.txt --vocab-size 400 -o out", "--validation 0.3"),
        (None, "tokenizer train text.txt --vocab-size 400 -o out", "--vocab-size 500"),
        (None, "substrate build tokenizer --d-model 64 --kind random -o out", "--seed 1"),
        (None, PREPARE.replace("-o data", "-o out"), "--seed 1"),
        (None, PREPARE.replace("-o data", "-o out"), "--limit 40"),
        (PREPARE, "train recipe.yaml -o out", "--set training.seed=1"),
        (PREPARE, "grow recipe.yaml --plan shallow-2 --set abilities=false -o out", "--set training.seed=1"),
        (None, "compose a b -o out", "--rule mean"),
        (None, "compose a b -o out", "--weight a=2"),
    ],
)
def test_again(place, treering, before, command, other):
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}

    if before:
        assert treering(before)[0] == 0
    assert "complete" not in treering(command)[2]
    made = files()
    assert made
    status, _, said = treering(command)
    assert (status, "out: complete, nothing to do" in said) == (0, True), said
    status, _, said = treering(f"{command} {other}")
    assert (status, "out already exists with other content" in said) == (2, True), said
    if "training.seed" in other:
        assert ".seed: 0 there, 1 here" in " ".join(said.split())
    assert files() == made


def test_a_corpus_of_a_text_that_changed_is_another(place, treering):
    treering(PREPARE)
    assert "complete, nothing to do" in treering(PREPARE)[2]
    with (place / "text.txt").open("a") as file:
        file.write("\n\nOne more.")
    assert "data already exists with other content" in treering(PREPARE)[2]


def test_a_composition_of_an_expert_that_changed_is_another(place, expert):
    experts = {name: place / name for name in "ab"}
    compose_directories(experts, place / "out")
    compose_directories(experts, place / "out")
    expert(7, 1).save_pretrained(place / "a")
    with pytest.raises(TreeringError, match="already exists"):
        compose_directories(experts, place / "out")
