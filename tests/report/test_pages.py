"""Every page, from what runs and studies leave: said in words, safe from names, open to all who read."""

from __future__ import annotations

import json
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from treering.cli.main import app
from treering.errors import TreeringError
from treering.evaluation.bits import Change
from treering.evaluation.comparison import Cell, Comparison, Pair
from treering.evaluation.costs import Costs
from treering.evaluation.gains import EVERY, OWN, Against, Gains, Yardstick
from treering.evaluation.gains import Outcome as Gain
from treering.evaluation.kinds import Kinds
from treering.growth.continual import Result
from treering.growth.outcome import Outcome
from treering.growth.stages import StageResult
from treering.report import Grid, as_html, write_page
from treering.report.comparison import comparison_report
from treering.report.directory import kind_of, page_of, report_of
from treering.report.measures import (
    abilities_report,
    bits_report,
    forgetting_report,
    kinds_report,
    paper_report,
    tasks_report,
)

EVIL = "<script>alert(1)</script>$x^&"
RULE = "evidence:switch=0.01"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def history(stages=1, start=2.5):
    """Six training steps and two validations a stage."""
    entries, tokens = [], 0
    for stage in range(1, stages + 1):
        for step in range(1, 7):
            tokens += 1000
            own = {"step": step, "tokens": tokens, "stage": stage, "epoch": 1.0, "learning_rate": 0.1}
            entries.append({**own, "loss": 5.0, "bits_per_byte": start - 0.00002 * tokens})
            if step % 3 == 0:
                entries.append({**own, "eval_loss": 5.0, "eval_bits_per_byte": start - 0.00002 * tokens})
    return entries if stages > 1 else [{k: v for k, v in entry.items() if k != "stage"} for entry in entries]


def record():
    measured = {"steps": 6, "kept_step": 6, "tokens": 6000, "seconds": 3.0, "tokens_per_second": 9.0}
    origin = {"sources": [EVIL, "en"], "corpus": "a" * 64, "substrate": "b" * 64}
    settings = {"learning_rate": 0.003, "schedule": "cosine", "keep": None}
    return {"origin": origin, "settings": settings, "measured": {**measured, "validation_bits_per_byte": 2.0}}


def ability(stage, measure, text=EVIL):
    return {
        "model": "m",
        "text": text,
        "measure": measure,
        "value": 0.5,
        "low": 0.4,
        "high": 0.6 - stage / 9,
        "count": 9,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "fi"
    write(place / "history.json", history())
    write(place / "training.json", record())
    return place


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    place = tmp_path_factory.mktemp("grown") / "deep"
    write(place / "history.json", history(stages=2))
    write(place / "training.json", record())
    shared = {
        "new": "2",
        "train": "2",
        "total": 10,
        "active": 5,
        "flops": 1e9,
        "steps": 6,
        "tokens": 6000,
        "seconds": 2.0,
    }
    stages = [
        StageResult(
            number=n, depth=n, prefix_seconds=0.0, tokens_per_second=9.0, validation_bits_per_byte=3 - n, **shared
        )
        for n in (1, 2)
    ]
    write(place / "growth.json", {"plan": {}, "stages": [asdict(stage) for stage in stages]})
    for n in (1, 2):
        measures = ("bits per byte", "continuation", "recall")
        write(place / "stages" / f"{n}" / "abilities.json", [ability(n, m, t) for m in measures for t in (EVIL, "en")])
    return place


@pytest.fixture(scope="module")
def growth_study(tmp_path_factory):
    place = tmp_path_factory.mktemp("growth") / "study"
    made = {"learning_rate": 0.008, "warmup": 0.3, "schedule": "cosine", "seeds": 2, "active": 9, "optimiser": 1.0}
    made |= {
        "optimiser_host": 0.5,
        "tokens": 6000,
        "flops": 1e12,
        "seconds": 9.0,
        "recovered": 0.5,
        "texts": {EVIL: 1.5},
    }
    bits = {"grown, glyph": 1.55, "monolithic, glyph": 1.5, "shallow, glyph": 1.6, "grown, glyph, equal compute": 1.5}
    rows = [Outcome(name=n, bits_per_byte=b, low=b - 0.01, high=b + 0.01, **made) for n, b in bits.items()]
    write(place / "study.json", [asdict(row) for row in rows])
    write(place / "runs" / "grown-glyph" / "0.008-0.3-cosine-0" / "history.json", history(stages=2))
    write(place / "runs" / "monolithic-glyph" / "0.008-0.3-cosine-0" / "history.json", history(start=2.4))
    write(place / "runs" / "monolithic-glyph" / "0.004-0.3-cosine-0" / "history.json", "another rate")
    return place


@pytest.fixture(scope="module")
def continual_study(tmp_path_factory):
    place = tmp_path_factory.mktemp("continual") / "study"
    matrix = [{"ru": 3.0, EVIL: 3.0}, {"ru": 2.0, EVIL: 2.9}, {"ru": 2.2, EVIL: 2.0}]
    shared = {"rate": 0.003, "average": 2.1, "low": 2.0, "high": 2.2, "transfer": -0.1, "forgetting": 0.1, "trained": 9}
    shared |= {"stored": 99, "milliseconds": 1.5, "matrices": {"ru, zh; seed 0": matrix}}
    changes = {
        "branches, evidence": None,
        "branch in sequence": (0.1, 0.05, 0.15),
        "branches, gate": (-0.1, -0.2, -0.05),
    }
    results = [asdict(Result(method=method, change=change, **shared)) for method, change in changes.items()]
    write(place / "continual.json", results)
    write(place / "study.json", {"model": "x"})  # what all runs have in common
    return place


@pytest.fixture(scope="module")
def composition_study(tmp_path_factory):
    place = tmp_path_factory.mktemp("composition") / "study"
    outcomes = []
    for text in ("ru", EVIL):
        for members, overlap in ((1, None), (2, 0.0), (2, 0.5)):
            change = -0.05 if members == 2 else 0.02
            against = Against((2.0,), (Change(change, change - 0.01, change + 0.01),))
            named = {OWN: against, EVERY: against, "pooled": against}
            outcomes.append(Gain(text, RULE, members, overlap, overlap, 8, (1.9,), named, Costs(1000, 2.5, 9.5)))
    pooled = Yardstick("pooled", None, 2, Costs(500, 1.0, 3.5), {"ru": (1.9,), EVIL: (1.8,)})
    write(place / "composition.json", asdict(Gains(outcomes, [pooled], {"members, 1": 0.003})))
    return place


def row(model, text, bits, rule=None):
    shared = {"low": bits - 0.01, "high": bits + 0.01, "documents": 9}
    return {"model": model, "text": text, "rule": rule, "bits_per_byte": bits, **shared}


ROWS = [
    *(row("uniform", text, 4.0) for text in ("ru", "zh")),
    *(row(EVIL, text, bits) for text, bits in (("ru", 1.0), ("zh", 3.0))),
    *(row("joined", text, bits, RULE) for text, bits in (("ru", 1.1), ("zh", 1.9))),
    row("oracle", "ru", 0.9),
]
DIFFERENCES = [
    {"rule": RULE, "text": "ru", "expert": EVIL, "own": True, "change": 0.1, "low": 0.05, "high": 0.2, "documents": 9},
    {
        "rule": RULE,
        "text": "zh",
        "expert": EVIL,
        "own": False,
        "change": -0.3,
        "low": -0.4,
        "high": -0.2,
        "documents": 9,
    },
]
KINDS = Kinds(
    rows=[row(name, text, bits) for name, bits in (("a", 1.0), ("b", 1.1), (EVIL, 3.0)) for text in ("ru", EVIL)],
    own={"a": ["ru"], "b": ["ru"], EVIL: [EVIL]},
    pairs=[
        {"experts": two, "text": "ru", "say": say, "low": say - 0.01, "high": say + 0.01, "documents": 9}
        for two, say in ((("a", "b"), 0.45), (("a", EVIL), 0.02), (("b", EVIL), 0.195))
    ],
    kinds=[["a", "b"], [EVIL]],
    heard={"ru": ["a", "b"], EVIL: [EVIL]},
    gains=[{"text": text, "change": -0.02, "low": -0.03, "high": -0.01, "documents": 9} for text in ("ru", EVIL)],
    least=0.2,
)
TASK = {"task": EVIL, "version": 1.0, "shots": 0, "measure": "acc", "chance": 0.25, "count": 100}
EXAM = {"value": 26.0, "margin": 0.5, "runs": 10, "samples": 1000, "chance": 25.0, "published": 24.0, "unanswered": 0.2}
COMPARISON = Comparison(
    [Cell(model=m, subject="ru", measure="bits per byte", value=v, low=v, high=v, count=9)
     for m, v in (("a", 1), (EVIL, 2))],
    [Pair(first="a", second=EVIL, subject="ru", measure="bits per byte", difference=-0.5, low=-0.6, high=-0.4, count=9,
          better="first")],
)  # fmt: skip


@pytest.fixture(scope="module")
def reports(trained, grown, joined, growth_study, continual_study, composition_study):
    """Every kind of page, by name."""
    made = [trained, grown, joined, growth_study, continual_study, composition_study]
    return {kind_of(place): report_of(place) for place in made} | {
        "bits": bits_report(ROWS, "treering eval"),
        "forgetting": forgetting_report(ROWS, DIFFERENCES, RULE),
        "kinds": kinds_report(KINDS, "treering compose kinds"),
        "abilities": abilities_report([ability(1, "recall"), ability(1, "bits per byte")]),
        "tasks": tasks_report([{**TASK, "model": m, "value": 0.5, "stderr": 0.05} for m in ("a", EVIL)]),
        "paper": paper_report([{**EXAM, "model": m, "exam": e} for m in ("a", EVIL) for e in ("paper_mmlu", EVIL)]),
        "comparison": comparison_report(COMPARISON, "treering compare"),
    }


class Parsed(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_page_has_one_sentence_headers_that_say_their_scope_and_figures_with_roles_and_titles(reports):
    for kind, report in reports.items():
        page = as_html(report)
        parsed = Parsed(page)
        assert len([a for a in parsed.all("p") if a.get("class") == "takeaway"]) == 1, kind
        assert report.takeaway.endswith(".") and report.takeaway in " ".join(parsed.text.split()), kind
        assert all(header.get("scope") in ("col", "row") for header in parsed.all("th")), kind
        ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), kind
        for figure in parsed.all("svg"):
            assert figure["role"] == "img" and set(figure["aria-labelledby"].split()) <= set(ids), kind
        assert parsed.all("html") == [{"lang": "en"}]
        assert not [a for _, a in parsed.tags if a.get("src") or not a.get("href", "#").startswith("#")], kind
        assert page == as_html(report)


def test_a_name_is_only_ever_text(reports):
    for kind, report in reports.items():
        parsed = Parsed(as_html(report))
        assert parsed.all("script") == [], kind
        assert kind == "composition" or EVIL in parsed.text, kind


def test_figures_stand_where_they_belong(reports):
    figures = {kind: as_html(report).count("<svg") for kind, report in reports.items()}
    assert figures == {
        "trained": 1, "grown": 2, "composition": 0, "growth study": 1, "continual study": 1, "composition study": 1,
        "bits": 1, "forgetting": 1, "kinds": 1, "abilities": 0, "tasks": 0, "paper": 0, "comparison": 0,
    }  # fmt: skip


def grids(report):
    return [part for section in report.sections for part in section.parts if isinstance(part, Grid)]


def test_who_knows_what_marks_models_and_no_yardsticks(reports):
    (table,) = grids(reports["bits"])
    cells = dict(table.rows)
    assert table.head == ["", "ru (9 documents)", "zh (9 documents)"]
    assert [cell.best for cell in cells[EVIL]] == [True, False] and [cell.tint for cell in cells[EVIL]] == [1, 0]
    assert (
        [cell.tint for cell in cells["uniform"]] == [0, 0] and cells["oracle"][0].tint == 0 and cells["oracle"][1] == ""
    )


def test_a_wide_table_of_abilities_is_turned_round_and_no_tie_is_the_best():
    found = [{**ability(1, m, t), "model": a} for a in "ab" for t in ("ru", "en") for m in ("recall", "continuation")]
    [section] = abilities_report(found).sections
    assert list(section.parts[0].head) == ["", "a", "b"]
    assert [name for name, _ in section.parts[0].rows][:2] == ["ru: recall (9)", "ru: continuation (9)"]
    assert not any(cell.best for _, cells in section.parts[0].rows for cell in cells)


def test_the_papers_scores_stand_beside_what_guessing_gives_and_the_published_ones():
    exam, squad = {**EXAM, "model": "a", "exam": "paper_mmlu"}, {"exam": "paper_squad", "chance": None}
    scores, missed = paper_report([exam, {**exam, **squad, "published": None, "unanswered": None}]).sections
    assert list(scores.parts[0].head) == ["", "a", "chance", "published", "questions"]
    shown = [(name, cells[0].value, cells[0].note, *cells[1:]) for name, cells in scores.parts[0].rows]
    assert shown == [
        ("paper_mmlu", "26.00", "± 0.50", "25.00", "24.00", "10 × 1,000"),
        ("paper_squad", "26.00", "± 0.50", "", "", "10 × 1,000"),
    ]
    assert missed.parts[0].rows == [("paper_mmlu", ["20.0%"])]


def test_the_matrix_of_forgetting_is_green_for_a_gain_and_red_for_a_loss(reports):
    matrix = grids(reports["forgetting"])[0]
    ((rule, (lost, gained)),) = matrix.rows
    assert (rule, lost.value, gained.value) == (RULE, "+10.0%", "-30.0%")
    assert lost.tint < 0 < gained.tint and (lost.ground[:7], gained.ground[:7]) == ("#d55e00", "#009e73")
    assert (lost.note, matrix.head[1:]) == ("+5.0% … +20.0%", [f"ru, against {EVIL}", f"zh, against the best, {EVIL}"])


def test_the_matrix_of_kinds_is_the_same_from_both_sides_and_bold_within_a_kind(reports):
    _, matrix, texts = grids(reports["kinds"])
    cells = {(name, other): cell for name, row in matrix.rows for other, cell in zip(matrix.head[1:], row, strict=True)}
    assert [cells[name, name] for name in KINDS.own] == ["", "", ""]
    assert all(cells[one, other] == cells[other, one] for one, other in cells)
    assert (cells["a", "b"].value, cells["a", "b"].note, cells["a", "b"].best) == ("45%", "ru, 44% … 46%", True)
    assert [name for name in KINDS.own if cells["b", name] and cells["b", name].best] == ["a"]
    (own, change, heard) = dict(texts.rows)["ru"]
    assert (own.value, change.value, heard.value) == ("a, b", "-2.0%", "a, b")
    assert f"more documents could say the opposite of b beside {EVIL}" in reports["kinds"].takeaway


def test_what_became_of_a_task_is_measured_from_when_it_was_learned(reports):
    kept = dict(grids(reports["continual study"])[1].rows)["branches, evidence"]
    assert kept[0].value == "+10.0%" and kept[0].tint < 0  # 2.0 when it was learned, 2.2 at the end
    assert kept[1] == ""  # after the last task none came


def test_a_growth_study_draws_the_chosen_runs_that_are_there(growth_study):
    page = as_html(report_of(growth_study))
    assert "grown, glyph</text>" in page and "monolithic, glyph</text>" in page and "shallow, glyph</text>" not in page


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_pages_hinder_nobody(reports, visit, faults, tmp_path, width, scheme):
    for kind in ("grown", "composition", "composition study", "forgetting", "kinds"):
        (tmp_path / "page.html").write_text(as_html(reports[kind]), encoding="utf-8")
        assert faults(visit(f"file://{tmp_path / 'page.html'}", width, scheme)) == [], kind


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("history.json", [{"step": 1, "tokens": 1e99}], "none that can be drawn"),
        (
            "history.json",
            [{"step": 1, "tokens": 1, "loss": float("nan"), "bits_per_byte": 1}],
            "none that can be drawn",
        ),
        ("history.json", [{"step": 1, "tokens": 1, "loss": 1}], "a loss without its bits per byte"),
        ("history.json", {"step": 1}, "is not what Treering writes there"),
        ("training.json", {"measured": {}}, "measured.steps: Field required"),
        ("training.json", record() | {"origin": {"sources": 5}}, "training.json.*origin.sources"),
        ("training.json", record() | {"origin": {"teacher": "north"}}, "training.json.*origin.teacher"),
        ("training.json", record() | {"origin": {"teacher": {"name": "north"}}}, "origin.teacher.share"),
        ("growth.json", {"stages": []}, "is not what Treering writes there: stages"),
    ],
)
def test_what_no_run_wrote_is_refused(trained, tmp_path, name, content, why):
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write(tmp_path / name, content)
    with pytest.raises(TreeringError, match=why):
        report_of(tmp_path)


def test_a_run_is_not_read_through_a_link_or_out_of_its_directory(growth_study, trained, tmp_path):
    (tmp_path / "training.json").write_bytes((trained / "training.json").read_bytes())
    (tmp_path / "history.json").symlink_to(trained / "history.json")
    with pytest.raises(TreeringError, match="is a link"):
        report_of(tmp_path)
    rows = json.loads((growth_study / "study.json").read_text())
    write(tmp_path / "study" / "study.json", [{**rows[0], "name": "../../x"}])
    with pytest.raises(TreeringError, match="not inside it"):
        report_of(tmp_path / "study")


def test_a_page_is_in_a_study_and_beside_a_model(trained, growth_study):
    assert page_of(growth_study) == growth_study / "report.html"
    assert page_of(trained) == trained.with_name("fi.html")


def test_nothing_but_a_page_of_ours_is_written_over(tmp_path, reports):
    page = tmp_path / "new" / "page.html"
    write_page(page, as_html(reports["trained"]))
    write_page(page, as_html(reports["trained"]))
    assert list(page.parent.iterdir()) == [page]
    page.write_text("mine")
    with pytest.raises(TreeringError, match="choose another name"):
        write_page(page, "x")
    assert page.read_text() == "mine"


def run(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_command_writes_a_page_for_each(trained, grown, tmp_path, monkeypatch):
    before = sorted(path.name for path in trained.iterdir())
    done = run(trained, grown)
    assert done.exit_code == 0, done.exception
    assert trained.with_name("fi.html").is_file() and grown.with_name("deep.html").is_file()
    assert sorted(path.name for path in trained.iterdir()) == before
    assert "fi reached" in done.stderr
    monkeypatch.chdir(trained)
    assert run(".", "-o", tmp_path / "page.html").exit_code == 0
    assert "<title>Training of fi</title>" in (tmp_path / "page.html").read_text()
    assert "give one" in str(run(trained, grown, "-o", tmp_path / "page.html").exception)
    (tmp_path / "mine.html").write_text("mine")
    assert "choose another name" in str(run(trained, "-o", tmp_path / "mine.html").exception)


def test_command_says_what_it_can_be_given(tmp_path):
    assert "nothing that a page is made of" in str(run(tmp_path).exception)
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    assert "is a demo, which has its page" in str(run(tmp_path).exception)
