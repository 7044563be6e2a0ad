"""The second demo, on a base that is small and was never trained: that all is made, told and kept."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from treering import load_model
from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import DEFAULT_RULE, list_experts
from treering.demo import demo_pretrained
from treering.demo import pretrained as module
from treering.errors import TreeringError

MODELS = [("base", None), ("ru", None), ("zh", None), ("joined", "evidence"), ("joined", DEFAULT_RULE)]


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 256, "tie_word_embeddings": True}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    place = tmp_path_factory.mktemp("pretrained") / "base"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ids)).save_pretrained(place)
    tokenizers.save(tokenizer, place)
    return place


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", replace(module.QUICK, block=64))
        quietly(base, output)
    return output


def quietly(base, output):
    return demo_pretrained(str(base), output, quick=True, console=Console(file=io.StringIO()))


def test_every_model_is_measured_on_every_language(made):
    rows = json.loads((made / "results.json").read_text())
    assert [(r["model"], r["rule"], r["text"]) for r in rows] == [(*m, t) for m in MODELS for t in ("ru", "zh", "en")]
    bits = {(r["rule"] or r["model"], r["text"]): r["bits_per_byte"] for r in rows}
    assert bits["ru", "ru"] < bits["base", "ru"]
    sentences = (made / "findings.txt").read_text().splitlines()
    for text, sentence in zip(("ru", "zh", "en"), sentences, strict=True):
        for name in ("base", "evidence", DEFAULT_RULE, *([] if text == "en" else [text])):
            assert f"{bits[name, text]:.3f}"[:-1] in sentence
        assert sentence.count("95% interval") == (2 if text == "en" else 3)


def test_branches_and_base_share_a_trunk_and_load_without_treering(made):
    joined = load_model(made / "joined")
    assert [record["name"] for record in list_experts(made / "joined")] == ["base", "ru", "zh"]
    assert [trunk.experts for trunk in joined.tree.trunks.values()] == [("base", "ru", "zh")]
    plain = AutoModelForCausalLM.from_pretrained(made / "ru")
    assert type(plain) is LlamaForCausalLM
    assert plain.config.num_hidden_layers == 4


def test_the_report_is_one_page_that_says_what_was_found_and_who_spoke(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.count("<svg") == 2
    assert re.findall(r'<span lang="(\w+)">', page) == [language for language, _ in module.MIXED]
    assert "".join(passage for _, passage in module.MIXED) in html.unescape(re.sub("<[^>]+>", "", page))
    assert f'class="takeaway">Joined by {DEFAULT_RULE}, the model with its branches needs' in page
    assert (made / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_where_it_stopped_and_is_only_shown_when_finished(made, base, monkeypatch):
    monkeypatch.setattr(module, "grow_recipe", None)
    (made / "report.html").unlink()
    rows = quietly(base, made).rows
    monkeypatch.setattr(module, "load_model", None)
    assert quietly(base, made).rows == rows
    with pytest.raises(TreeringError, match="another kind, size or version"):
        quietly("another", made)


def test_pages_are_of_this_demo_alone():
    told = CliRunner().invoke(app, ["demo", "--pages", "50"])
    assert isinstance(told.exception, TreeringError) and "--pretrained MODEL" in str(told.exception)
