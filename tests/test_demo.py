from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from treering import load_model
from treering.composition import DEFAULT_RULE
from treering.corpus import Corpus
from treering.demo import demo, steps
from treering.demo import specialists as module
from treering.demo.specialists import COMPARED
from treering.errors import TreeringError

pytestmark = pytest.mark.slow


def quietly(*arguments, **kwargs):
    return demo(*arguments, **kwargs, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "out"
    quietly(output, quick=True)
    return output


def test_results_have_a_row_for_every_model_and_language(made):
    rows = json.loads((made / "results.json").read_text())
    models = [("uniform", None), ("ru", None), ("zh", None), *(("composed", rule) for rule in COMPARED)]
    assert [(r["model"], r["rule"], r["text"]) for r in rows] == [(*m, t) for m in models for t in ("ru", "zh", "en")]
    bits = {(r["model"], r["text"]): r["bits_per_byte"] for r in rows}
    assert bits["ru", "ru"] < bits["zh", "ru"]
    assert bits["zh", "zh"] < bits["ru", "zh"]
    assert all(bits[expert, expert] < bits["uniform", expert] for expert in ("ru", "zh"))


def test_findings_tell_losses_as_well_as_wins(made):
    rows = json.loads((made / "results.json").read_text())
    bits = {(r["rule"] or r["model"], r["text"]): r["bits_per_byte"] for r in rows}
    sentences = (made / "findings.txt").read_text().splitlines()
    assert [s.partition(":")[0] for s in sentences] == ["ru", "zh", "en"]
    for text, sentence in zip(("ru", "zh", "en"), sentences, strict=True):
        for rule, part in zip(COMPARED, sentence.split(";")[1:], strict=True):
            assert f"joined by {rule} {bits[rule, text]:.3f}"[:-1] in part
            lost = bits[rule, text] > min(bits["ru", text], bits["zh", text])
            assert ("worse than" in part or "not to be told apart" in part) if lost else "worse" not in part


def test_experts_and_composition_load(made):
    assert type(AutoModelForCausalLM.from_pretrained(made / "ru")) is GPTNeoXForCausalLM
    assert load_model(made / "composed").config.rule == DEFAULT_RULE


def test_no_held_out_page_is_read_in_any_language_and_no_english_page_twice(made):
    corpora = {name: Corpus.load(made / f"data-{name}") for name in ("ru", "zh")}
    held_out = {name: set(c.validation["id"]) for name, c in corpora.items()}
    parts = {name: {s.source.part for s in c.manifest.sources if s.name == "en"} for name, c in corpora.items()}
    assert parts == {"ru": {"1/2"}, "zh": {"2/2"}}
    english = {n: {r["id"] for r in c.validation if r["source"] == "en"} for n, c in corpora.items()}
    assert not english["ru"] & english["zh"]
    both = held_out["ru"] & held_out["zh"]
    assert len(both) > 50  # the same pages are held out in Russian and Chinese


def test_the_report_is_one_self_contained_page(made, visit, faults):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.count("<svg") == 2
    assert page.count('class="takeaway">Joined by evidence:switch=0.01, ') == 1
    assert all(page.count(f'<blockquote lang="{language}">') == 3 for language in ("ru", "zh", "en"))
    assert faults(visit(f"file://{made / 'report.html'}", 390, "dark")) == []
    assert json.loads((made / "substrate" / "substrate.json").read_text())["fingerprint"] in page


def test_a_finished_demo_is_only_shown_again(made, monkeypatch):
    monkeypatch.setattr(module, "train_expert", None)
    monkeypatch.setattr(steps, "generate", None)
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*") if p.is_file()}
    assert quietly(made, quick=True).rows == json.loads((made / "results.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*") if p.is_file()} == before


def test_a_demo_of_another_size_is_refused(made):
    with pytest.raises(TreeringError, match="another kind, size or version"):
        quietly(made)


def test_an_interrupted_demo_goes_on(made, monkeypatch):
    (made / "report.html").unlink()
    monkeypatch.setattr(module, "train_expert", None)
    quietly(made, quick=True)
    assert (made / "report.html").exists()
