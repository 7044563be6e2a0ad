"""What the measuring commands print of few documents, several tokenizers and texts that are nobody's own."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPTNeoXForCausalLM

from treering import tokenizer as tokenizers
from treering.backbone import Preset, gpt_neox
from treering.composition import compose_directories


@pytest.fixture(scope="module")
def place(tokenizer, expert, pages, tmp_path_factory):
    """Experts a and b, their composition, a model with another tokenizer, and a text of one and of three documents."""
    place = tmp_path_factory.mktemp("measured")
    for seed, name in enumerate("ab"):
        expert(seed, 1).save_pretrained(place / name)
        tokenizers.save(tokenizer, place / name)
    compose_directories({name: place / name for name in "ab"}, place / "joined")
    other = tokenizers.train({"en": pages["en"]}, 400)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(gpt_neox(Preset(1, 64, 2, len(other), context=96))).save_pretrained(place / "other")
    tokenizers.save(other, place / "other")
    for name, texts in {"one": ["some text"], "three": ["some text", "another one", "and a third"]}.items():
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return place


def test_of_one_document_there_is_no_interval(treering):
    status, out, _ = treering("eval bits a b --text one.jsonl --text three.jsonl")
    assert status == 0 and "one (1 document)" in out and "three (3 documents)" in out
    assert "± 0.000" not in out and out.count("±") == 3  # uniform, a and b on three


def test_a_page_is_written_beside_what_is_printed_and_over_no_other_file(treering, place):
    status, out, _ = treering("eval bits a b --text one.jsonl --text three.jsonl -o page.html")
    page = (place / "page.html").read_text()
    assert status == 0 and "three (3 documents)" in out
    assert '<th scope="col">one (1 document)</th>' in page and "Fewest bits per byte: " in page
    assert "treering eval bits a b --text one.jsonl --text three.jsonl -o page.html" in page
    for name, why in (("three.jsonl", "end in .html"), ("mine.html", "choose another name")):
        (place / "mine.html").write_text("mine")
        before = (place / name).read_text()
        status, _, err = treering(f"eval bits a --text nowhere.txt -o {name}")  # refused before anything is read
        assert status == 2 and why in err and (place / name).read_text() == before


def test_every_tokenizer_has_its_own_uniform_row(treering):
    rows = json.loads(treering("eval bits a b other --text three.jsonl --json")[1])
    told = {row["model"]: row["bits_per_byte"] for row in rows}
    assert list(told) == ["uniform over a's tokens", "uniform over other's tokens", "a", "b", "other"]
    assert len({told["uniform over a's tokens"], told["uniform over other's tokens"]}) == 2
    rows = json.loads(treering("eval bits a b --text three.jsonl --json")[1])
    assert [row["model"] for row in rows] == ["uniform", "a", "b"]
    rows = json.loads(treering("eval bits a other --text three.jsonl --no-uniform --json")[1])
    assert [row["model"] for row in rows] == ["a", "other"]


def test_forgetting_measures_texts_that_are_nobodys(treering):
    status, out, err = treering("eval forgetting joined --text three.jsonl --rule mean --json")
    found = json.loads(out)
    assert status == 0 and "No text is known to be a, b's own; where one is, say --own a=TEXT." in err
    assert [(d["text"], d["own"]) for d in found["differences"]] == [("three", False)]
    _, out, err = treering("eval forgetting joined --text three.jsonl --rule mean --own b=three --json")
    assert "to be a's own" in err
    assert [(d["expert"], d["own"]) for d in json.loads(out)["differences"]] == [("b", True)]


@pytest.mark.parametrize(("options", "warns"), [("", True), (" --validation 0", False), (" --validation 0.5", False)])
def test_a_held_out_part_that_is_too_small_is_told(treering, place, tmp_path, options, warns):
    (place / "few.txt").write_text("\n".join(f"Passage {n} of {n * n}, a line." for n in range(60)))
    prepare = f"-q data prepare few.txt -t a --document line --block-size 8 -o {tmp_path / 'out'}"
    status, _, err = treering(prepare + options)
    assert status == 0 and ("warning: few documents are held out (few " in err) == warns, err
