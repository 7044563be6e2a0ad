"""The study of compositions, with models that hardly learn: what each reads, what is compared, what is kept."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from treering import load_model
from treering.cli.main import app
from treering.composition import compose
from treering.corpus import Corpus, read_documents, split_of
from treering.errors import TreeringError
from treering.evaluation import document_losses, paired_change, search
from treering.evaluation import overlap as module
from treering.evaluation.overlap import OverlapRecipe, overlap
from treering.evaluation.owners import topic_of
from treering.tokenizer import load
from treering.training.divergence import Divergence

KINDS = ("ru", "zh")
RULES = ("evidence:switch=0.01", "mean")
SHARES = {"validation": 0.06, "calibration": 0.06}


@pytest.fixture(scope="module", autouse=True)
def as_given():
    """The rates of the recipe alone, and none beyond their ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "rates", lambda values, tried: values)
        yield


@pytest.fixture(scope="module")
def recipe(substrate, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    (folder / "substrate").mkdir()
    substrate.save(folder / "substrate", tokenizer)
    for kind in KINDS:  # six topics of some pages each
        topics: dict[str, list[str]] = {}
        for document in read_documents(f"embedded:{kind}"):
            topics.setdefault(topic_of(document.id), []).append(
                json.dumps({"id": document.id, "text": document.text[:600]})
            )
        whole = [topics[topic][:20] for topic in sorted(topics) if len(topics[topic]) >= 20][:6]
        (folder / f"{kind}.jsonl").write_text("\n".join(itertools.chain.from_iterable(whole)))
    (folder / "notes.txt").write_text("A note of nobody's kind.\n\nAnother one, as short.")
    return {
        "substrate": str(folder / "substrate"),
        "output": str(folder / "out"),
        "kinds": {kind: str(folder / f"{kind}.jsonl") for kind in KINDS},
        "outside": {"notes": {"path": str(folder / "notes.txt"), "document": "paragraph"}},
        "backbone": {"preset": "tiny", "layers": 1, "context": 64},
        "training": {"tokens": 4096, "batch_tokens": 512, "evaluations": 1},
        "rates": [1e-2],
        "overlaps": [0, 1],
        "members": [1, 2],
        "seeds": [0],
        "rules": list(RULES),
        "documents": 4,
        **SHARES,
    }


def study(recipe):
    return overlap(OverlapRecipe.model_validate(recipe), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def found(recipe):
    return study(recipe)


@pytest.fixture
def output(recipe, found):
    return Path(recipe["output"])


def kept(output, key, text):
    """The losses in ``measured``, by name."""
    values = json.loads((output / "measured" / key / f"{text}.json").read_text())
    return {name: (nats, values["bytes"]) for name, nats in values["nats"].items()}


def test_every_cell_has_every_text_by_every_rule_beside_both_yardsticks(found):
    cells = [(1, None), (2, 0), (2, 1)]
    texts = (*KINDS, "mixture", "notes")
    told = [(one.text, one.rule, one.members, one.overlap) for one in found.outcomes]
    assert told == [(text, rule, *cell) for text in texts for rule in RULES for cell in cells]
    assert all(list(one.against) == ["best member", "every member", "pooled", "large"] for one in found.outcomes)
    assert [one.shared for one in found.outcomes[:3]] == [None, 0, 1]
    assert [(one.name, one.members) for one in found.yardsticks] == [("pooled", None), ("large", 1), ("large", 2)]
    assert set(found.rates) == {"members, 1", "members, 2", "pooled", "large, 1", "large, 2"}
    assert all(one.costs.milliseconds > 0 for one in (*found.outcomes, *found.yardsticks))


def test_no_page_is_anybodys_twice_and_none_that_is_held_out_is_trained_on(found, output):
    pages = {}
    for cell, owners in (("1", 1), ("2-0", 2), ("2-1", 2)):
        for kind in KINDS:
            for owner in range(1, owners + 1):
                rows = map(json.loads, (output / "texts" / cell / f"{kind}-{owner}.jsonl").read_text().splitlines())
                ids = [row["id"] for row in rows if split_of(row["id"], **SHARES) == "train"]
                pages[cell, kind, owner] = set(ids)
                trained = Corpus.load(output / "corpora" / cell / f"{kind}-{owner}").manifest.train.documents
                assert len(ids) == len(pages[cell, kind, owner]) == trained
    for kind, cell in itertools.product(KINDS, ("2-0", "2-1")):
        one, other = pages[cell, kind, 1], pages[cell, kind, 2]
        assert not one & other and one | other == pages["1", kind, 1]
        topics = {topic_of(page) for page in one} & {topic_of(page) for page in other}
        assert topics == (set() if cell == "2-0" else {topic_of(page) for page in one | other})
    for cell in ("2-0", "2-1"):
        assert not (pages[cell, "ru", 1] & pages[cell, "zh", 2])  # a page has one owner in every language


def test_all_read_the_same_tokens_of_a_kind(found, output):
    read = {place.name: json.loads((place / "training.json").read_text()) for place in (output / "runs").iterdir()}
    tokens = {name: run["settings"]["tokens"] for name, run in read.items()}
    assert tokens.pop("member-ru-0.01-0") == tokens.pop("member-zh-0.01-0") == 4096
    whole = {name for name in tokens if name.startswith(("pooled", "large"))}
    assert len(whole) == 3 and {tokens.pop(name) for name in whole} == {2 * 4096}
    assert len(tokens) == 8 and set(tokens.values()) == {2048}
    shares = [source.share for source in Corpus.load(output / "corpora" / "pooled").manifest.sources]
    assert shares == pytest.approx([1 / 2, 1 / 2], abs=0.01)


def test_parameters_are_those_of_the_models(found, output):
    count = {place.name: load_model(place).num_parameters() for place in (output / "runs").iterdir()}
    members = {name: load_model(output / "runs" / f"member-{name}-0.01-0") for name in KINDS}
    assert found.outcomes[0].costs.parameters == sum(p.numel() for p in compose(members).parameters())
    pooled, *larges = found.yardsticks
    assert pooled.costs.parameters == count["pooled-0.01-0"]
    for large, outcome in zip(larges, found.outcomes[:2], strict=True):
        assert large.costs.parameters == count[f"large-{large.layers}-0.01-0"]
        assert large.costs.parameters == pytest.approx(outcome.costs.parameters, abs=30_000)  # half a block


def test_the_numbers_are_those_of_the_models_made_by_hand(recipe, found, output):
    """The nats that were kept, from the models; bits and changes, from the nats."""
    tokenizer = load(recipe["substrate"])
    texts = {
        kind: [d.text for d in read_documents(recipe["kinds"][kind]) if split_of(d.id, **SHARES) == "validation"][:4]
        for kind in KINDS
    } | {"notes": ["A note of nobody's kind.", "Another one, as short."]}
    names = [f"{kind}-{owner}" for owner in (1, 2) for kind in KINDS]
    members = {name: load_model(output / "runs" / f"member-{name}of2-1-0.01-0") for name in names}
    told = {(row["text"], row["rule"], row["members"], row["overlap"]): row for row in outcomes(output)}
    for text, documents in texts.items():
        losses = {name: document_losses(model, tokenizer, documents) for name, model in members.items()}
        losses |= {rule: document_losses(compose(members, rule), tokenizer, documents) for rule in RULES}
        losses["pooled"] = document_losses(load_model(output / "runs" / "pooled-0.01-0"), tokenizer, documents)
        nats = kept(output, "joined-2-1-0.01-0", text)
        assert all(nats[name][0] == pytest.approx(losses[name].nats, rel=1e-4) for name in (*names, *RULES))
        assert kept(output, "pooled-0.01-0", text)["model"][0] == pytest.approx(losses["pooled"].nats, rel=1e-4)
        own = [name for name in names if text == "notes" or name.startswith(text)]
        best = min(own, key=lambda name: losses[name].nats.sum())
        for rule in RULES:
            row = told[text, rule, 2, 1]
            size = sum(len(document.encode()) for document in documents)
            assert row["bits_per_byte"] == pytest.approx([losses[rule].nats.sum() / size / math.log(2)], rel=1e-4)
            changes = {name: paired_change(losses[rule], losses[name]) for name in (*own, "pooled")}
            highest = max(changes[name].high for name in own)
            assert row["against"]["every member"]["changes"][0]["high"] == pytest.approx(highest, abs=1e-4)
            for other, name in (("best member", best), ("pooled", "pooled")):
                (change,) = row["against"][other]["changes"]
                expected = changes[name]
                assert change == pytest.approx(
                    {"change": expected.change, "low": expected.low, "high": expected.high}, abs=1e-4
                )


def test_all_kinds_together_are_compared_with_each_kinds_best_member(output):
    nats = {kind: kept(output, "joined-2-0-0.01-0", kind) for kind in KINDS}
    best = sum(min(sum(nats[kind][f"{kind}-{owner}"][0]) for owner in (1, 2)) for kind in KINDS)
    size = sum(sum(nats[kind]["mean"][1]) for kind in KINDS)
    (row,) = (
        row
        for row in outcomes(output)
        if (row["text"], row["rule"], row["members"], row["overlap"]) == ("mixture", "mean", 2, 0)
    )
    assert row["against"]["best member"]["bits_per_byte"] == pytest.approx([best / size / math.log(2)])
    assert row["bits_per_byte"] == pytest.approx([sum(sum(nats[k]["mean"][0]) for k in KINDS) / size / math.log(2)])
    assert row["documents"] == 8


def outcomes(output):
    return json.loads((output / "composition.json").read_text())["outcomes"]


def test_a_finished_study_is_only_told_again_and_the_command_line_tells_it(recipe, found, tmp_path, monkeypatch):
    for work in ("train_expert", "document_losses", "composition_losses", "costs"):
        monkeypatch.setattr(module, work, None)
    before = (Path(recipe["output"]) / "composition.json").read_bytes()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    told = CliRunner().invoke(app, ["study", "composition", str(path)])
    assert told.exit_code == 0, told.output
    assert len(re.findall(r"^ *(?:ru|zh|mixture|notes) .*%", told.output, re.M)) == len(found.outcomes)
    assert (Path(recipe["output"]) / "composition.json").read_bytes() == before
    assert (Path(recipe["output"]) / "composition.png").read_bytes().startswith(b"\x89PNG")
    page = (Path(recipe["output"]) / "report.html").read_text()
    assert page.count("<h2>On ") == len({outcome.text for outcome in found.outcomes}) and "<svg" in page
    rows = json.loads(CliRunner().invoke(app, ["study", "composition", str(path), "--json"]).stdout)
    assert rows == json.loads(before)


def test_a_rule_may_come_later(recipe, found, monkeypatch):
    monkeypatch.setattr(module, "train_expert", None)
    more = study(recipe | {"rules": [*RULES, "probability"], "members": [1], "yardsticks": ["pooled"]})
    assert [one.rule for one in more.outcomes[:3]] == [*RULES, "probability"]
    assert more.outcomes[0].bits_per_byte == found.outcomes[0].bits_per_byte
    assert list(more.outcomes[0].against) == ["best member", "every member", "pooled"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"training": {"tokens": 8192, "batch_tokens": 512, "evaluations": 1}}, "training"),
        ({"documents": 5}, "documents"),
        ({"outside": {}}, "outside"),
        ({"backbone": {"preset": "tiny", "layers": 2, "context": 64}}, "backbone"),
    ],
)
def test_runs_of_another_study_are_not_taken_for_its_own(recipe, found, change, what):
    with pytest.raises(TreeringError, match=f"holds runs with another {what} than the recipe's. Choose another output"):
        study(recipe | change)


def test_what_does_not_fit_is_refused(recipe, tmp_path):
    for change, message in (
        ({"training": {"epochs": 1}}, "say in tokens"),
        ({"outside": {"ru": "embedded:ru"}}, "ru is the name of a kind and of a text from outside"),
        ({"kinds": {"mixture": "embedded:ru"}}, "give the text another"),
        ({"kinds": {"a/b": "embedded:ru"}}, "pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            OverlapRecipe.model_validate(recipe | change)
    with pytest.raises(TreeringError, match="gate has to be fitted"):
        study(recipe | {"rules": ["gate"], "output": str(tmp_path / "out")})
    with pytest.raises(TreeringError, match="Of 9 owners that share 0% of the topics, one would have no page of ru"):
        owned = module._Study(
            OverlapRecipe.model_validate(recipe | {"output": str(tmp_path / "out")}), Console(file=io.StringIO())
        ).owned
        for owner in range(1, 10):
            owned.corpus("ru", module.Cell(9, 0), owner)


def test_a_rate_that_diverges_is_not_tried_again(recipe, tmp_path, monkeypatch):
    tried = []

    def diverges(run, console):
        tried.append(run.output)
        raise Divergence("Training diverged: the loss at step 2. Nothing was exported.")

    monkeypatch.setattr(module, "train_expert", diverges)
    for _ in range(2):
        with pytest.raises(TreeringError, match="Whatever rate was tried for members, 1, it diverged"):
            study(recipe | {"output": str(tmp_path / "out")})
    assert len(tried) == 1
