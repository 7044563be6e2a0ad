"""``treering compose …``: a thin skin, so what is tried is that words and options arrive where they should."""

from __future__ import annotations

import json
import re

import pytest
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli import main
from treering.cli.main import app
from treering.composition import DEFAULT_RULE, RULES, compose_directories, list_experts, load_model


@pytest.fixture(scope="module")
def places(expert, tokenizer, tmp_path_factory):
    """Three experts' directories, by name."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("ru", "zh", "en")):
        expert(seed, 1).save_pretrained(root / name)
        tokenizers.save(tokenizer, root / name)
    return {name: root / name for name in ("ru", "zh", "en")}


@pytest.fixture
def joined(places, tmp_path):
    compose_directories({name: places[name] for name in ("ru", "zh")}, tmp_path / "joined")
    return tmp_path / "joined"


def run(*arguments: object) -> str:
    """Standard output of ``treering compose`` with these arguments."""
    result = CliRunner().invoke(app, ["compose", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_all(*arguments: object) -> str:
    """What such a command prints, to standard output or error."""
    result = CliRunner().invoke(app, ["compose", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def content(place):
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_join_may_be_left_out_wherever_the_options_stand(places, joined, tmp_path):
    experts = places["ru"], places["zh"]
    for number, arguments in enumerate(
        [
            ("join", *experts, "-o", tmp_path / "0"),
            (*experts, "-o", tmp_path / "1"),
            ("-o", tmp_path / "2", *experts),
            ("--rule", DEFAULT_RULE, *experts, "--output", tmp_path / "3"),
        ]
    ):
        run(*arguments)
        assert content(tmp_path / str(number)) == content(joined)


def test_what_join_is_told_of_each_expert(places, tmp_path):
    options = ["--weight", "b=3", "--licence", "a=MIT", "--licence", "b=CC0", "--origin", "b=a = b", "--rule", "mean"]
    run(f"a={places['ru']}", f"b={places['zh']}", "-o", tmp_path / "joined", *options)
    a, b = list_experts(tmp_path / "joined")
    assert (a["name"], a["weight"], a["share"], a["licence"], a["origin"]) == ("a", 1.0, 0.25, "MIT", "ru")
    assert (b["name"], b["weight"], b["share"], b["licence"], b["origin"]) == ("b", 3.0, 0.75, "CC0", "a = b")
    assert load_model(tmp_path / "joined").config.rule == "mean"


def test_experts_come_and_go(places, joined):
    before = content(joined)
    run("add", joined, places["en"], "--weight", 0.5, "--licence", "MIT", "--origin", "a lab", "--rule", "mean")
    added = list_experts(joined)[2]
    assert (added["name"], added["weight"], added["licence"], added["origin"]) == ("en", 0.5, "MIT", "a lab")
    assert load_model(joined).config.rule == "mean"
    run("remove", joined, "en", "--rule", DEFAULT_RULE)
    assert content(joined) == before


def test_one_that_is_there_already_is_told_as_the_same(places, joined):
    done = CliRunner().invoke(app, ["compose", "add", str(joined), f"again={places['zh']}"])
    assert done.exit_code == 0 and "again is byte for byte zh" in done.stderr
    listed = {record["name"]: record for record in list_experts(joined)}
    assert [listed[name]["same_as"] for name in ("ru", "zh", "again")] == [[], ["again"], ["zh"]]
    table = run("list", joined)
    for name, other in (("zh", "again"), ("again", "zh")):
        assert re.search(rf"^ *{name} .* all shared .* as {other} *$", table, re.M), table
    assert re.search(rf"^ *ru .* {listed['ru']['parameters']:,} .* {listed['ru']['fingerprint'][:12]} *$", table, re.M)


def test_the_directory_one_stands_in(places, joined, monkeypatch):
    monkeypatch.chdir(places["en"])
    run("add", joined, ".")
    monkeypatch.chdir(joined)
    run("remove", ".", "ru")
    assert [record["name"] for record in list_experts(joined)] == ["zh", "en"]


def test_weights_and_rule(joined):
    run("reweight", joined, "ru=3", "zh=1e0")
    run("rule", joined, "top_k:k=2")
    assert [record["weight"] for record in list_experts(joined)] == [3.0, 1.0]
    assert str(load_model(joined).rule) == "top_k:k=2"


def test_list_shows_all_or_prints_it(joined):
    table = run("list", joined)
    records = json.loads(run("list", joined, "--json"))
    assert records == list_experts(joined)
    for record in records:
        assert re.search(rf"{record['name']} +1 +50.0% .*{record['parameters']:,}.*{record['fingerprint'][:12]}", table)


HOSTILE = "\x1b[2J\x9b[b]\u202e:x:"


def test_what_strangers_wrote_reaches_the_terminal_harmless(joined):
    config = json.loads((joined / "config.json").read_text())
    record = {"origin": HOSTILE, "licence": HOSTILE, "data": {"sources": [{"name": HOSTILE}]}}
    config["experts"][0].update(record)
    (joined / "config.json").write_text(json.dumps(config))
    (joined / f"notes{HOSTILE}").write_text("")
    table, listed, kept = run("list", joined), run("list", joined, "--json"), run_all("remove", joined, "zh")
    for shown in (table, listed, kept):
        assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    assert all(r"\x1b[2J\x9b[b]\u202e:x:" in shown for shown in (table, kept))
    assert json.loads(listed)[0]["origin"] == HOSTILE


def test_explain_and_its_page_show_names_as_they_may_be(joined, tmp_path):
    page = tmp_path / "<b>\x1b[2J\u202e.html"
    ran = CliRunner().invoke(app, ["explain", str(joined), "a\x1b[2Jb\u200d", "-o", str(page)], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "\x1b" not in ran.output and "a␛[2Jb\u200d" in ran.output and r"\u202e" in ran.output
    text = page.read_text()
    assert "\x1b" not in text and "\u202e" not in text and "<b>" not in text and "b\u200d" in text


def test_list_shows_families_that_name_their_shape_otherwise(places, tokenizer, joined, tmp_path):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizers.save(tokenizer, tmp_path / "gpt")
    run("add", joined, tmp_path / "gpt", "--across-substrates")
    assert "gpt2 3 × 16" in run("list", joined)


def test_rules_are_listed_with_parameters_and_source():
    listed = run("rules")
    for name, rule in RULES.items():
        assert re.search(rf"^ ?{name} .*{re.escape(rule.source.split(';')[0][:40])}", listed, re.MULTILINE)
    assert "k=1, switch=0.0" in listed


def test_help_names_the_commands_and_the_default_rule():
    everything = run("--help")
    for command in ("join", "add", "remove", "list", "reweight", "rule", "rules", "fit"):
        assert re.search(rf"[│|] {command} ", everything)
    assert DEFAULT_RULE in run("join", "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{ru}", "x={zh}", "-o", "{joined}"], "already exists"),
        (["{ru}", "{zh}", "-o", "{new}", "--licence", "MIT"], "write NAME=TEXT"),
        (["{ru}", "{zh}", "-o", "{new}", "--licence", "fr=MIT"], "There is no expert 'fr'. There are: ru, zh"),
        (["{ru}", "{zh}", "-o", "{new}", "--weight", "ru=-1"], "The weight of ru is -1.0"),
        (["{ru}", "x.y={zh}", "-o", "{new}"], "cannot be an expert's name"),
        (["{ru}", "x={joined}", "-o", "{new}"], "is a composition, of ru, zh"),
        (["add", "{ru}", "{zh}"], "is a single gpt_neox model, not a composition"),
        (["remove", "{joined}", "en"], "There is no expert 'en'"),
        (["reweight", "{joined}", "ru=nan"], "The weight of ru is nan"),
        (["rule", "{joined}", "oracle"], "yardstick"),
        (["list", "{new}"], "There is no directory"),
    ],
)
def test_what_cannot_work_is_one_message_and_changes_nothing(
    places, joined, tmp_path, monkeypatch, capsys, arguments, message
):
    before = content(tmp_path)
    words = [word.format(joined=joined, new=tmp_path / "new", **places) for word in arguments]
    monkeypatch.setattr("sys.argv", ["treering", "compose", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err
    assert printed.out == ""
    assert content(tmp_path) == before
