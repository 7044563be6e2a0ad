"""``treering grow`` as people type it: real text, two commands, and everything that can be wrong with a recipe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import treering
from treering import report
from treering import tokenizer as tokenizers
from treering.cli import main
from treering.cli.main import app
from treering.composition import load_model, parts
from treering.composition.bases import trunk_name
from treering.growth import recipe as recipes
from treering.recipe import load_recipe

TRAINING = {"tokens": 2048, "batch_tokens": 256, "evaluations": 1}


@pytest.fixture
def folder(substrate, tokenizer, corpus, foreign, tmp_path):
    """A directory with a substrate, a corpus, an existing model, and ``write(**fields)`` that makes a recipe."""
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    (tmp_path / "corpus").symlink_to(corpus.directory)
    foreign().save_pretrained(tmp_path / "llama")
    tokenizers.save(tokenizer, tmp_path / "llama")
    return tmp_path


def write(folder, **fields):
    recipe = {
        "substrate": str(folder / "substrate"),
        "data": str(folder / "corpus"),
        "output": str(folder / "out"),
        "backbone": {"preset": "tiny"},
        "plan": {"way": "stacked", "depth": 3, "width": 1},
        "training": TRAINING,
    } | fields
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in recipe.items() if value is not None}))
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(app, ["grow", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(monkeypatch, capsys, *arguments):
    """What ``treering grow`` says on standard error when it ends with exit code 2."""
    return told(monkeypatch, capsys, "grow", *arguments)


def told(monkeypatch, capsys, *arguments):
    """What a command says on standard error when it ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["treering", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_dry_run_shows_the_stages_and_makes_nothing(folder):
    shown = run(write(folder), "--dry-run").stdout
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()[1:]]
    assert [row[:6] for row in rows[:3]] == [
        ["1", "1", "1", "1", "random", "768"],
        ["2", "2", "2", "2", "random", "512"],
        ["3", "3", "3", "3", "random", "768"],
    ]
    assert not list(folder.glob("out*"))


def test_a_dry_run_of_a_ready_plan_needs_no_output(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sizes = ["--set", "backbone.preset=tiny", "--set", "training.tokens=20000"]
    shown = run("sliding-6", "--substrate", "substrate", "--data", "corpus", "--dry-run", *sizes).stdout
    assert len(shown.splitlines()) > 3
    assert not list(folder.glob("sliding*"))


def test_a_fresh_model_grows(folder):
    shown = run(write(folder)).stderr
    assert "stage 3 of 3: 3 blocks, new 3 (random), training 3" in shown
    assert re.search(r"out: 3 blocks, 2,048 tokens in .* bits/byte", shown.replace("\n", ""))
    assert AutoModelForCausalLM.from_pretrained(folder / "out").config.num_hidden_layers == 3


def test_the_picture_appears_with_the_model(folder, monkeypatch):
    """A run that is stopped while it draws goes on, instead of leaving a model without a picture for ever."""
    path, draw = write(folder), report.loss_curves

    def stop(*_):
        assert not (folder / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "loss_curves", stop)
    CliRunner().invoke(app, ["grow", path])
    assert not (folder / "out").exists()
    monkeypatch.setattr(report, "loss_curves", draw)
    run(path)
    assert (folder / "out" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_an_existing_model_grows(folder):
    plan = {"stages": [{"new": "3-4", "share": 1.0}]}
    run(write(folder, substrate=None, model=str(folder / "llama"), backbone=None, plan=plan))
    grown = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert (grown.config.model_type, grown.config.num_hidden_layers) == ("llama", 4)
    tokenizers.load(folder / "out")


def test_a_branch_grows_without_a_recipe(folder, monkeypatch):
    (folder / "branch").mkdir()  # what lies here under a plan's name is no recipe
    monkeypatch.chdir(folder)
    shown = run("branch", "--model", folder / "llama", "--data", folder / "corpus", "-o", folder / "out").stderr
    assert "stage 1 of 1: 4 blocks, new 3-4 (zero), training 3-4, head frozen" in shown
    before, after = (load_file(folder / name / "model.safetensors") for name in ("llama", "out"))
    kept = [name for name in before if name != "model.norm.weight"]
    assert all(after[name].equal(before[name]) for name in kept)
    own = set(after) - set(before)
    assert own and all(name.startswith(("model.layers.2.", "model.layers.3.")) for name in own)
    settings = json.loads((folder / "out" / "training.json").read_text())["settings"]
    said = {"learning_rate": 3e-3, "epochs": 2, "warmup": 0.1, "keep": "best"}
    assert {name: settings[name] for name in said} == said
    tokenizers.load(folder / "out")


def test_branches_join_their_base_and_no_other(folder, monkeypatch, capsys):
    """Grown and joined by the command line: the trunk is stored once, and a base with one bit changed is refused."""
    for name, new in (("ru", 2), ("zh", 1)):
        plan = {"way": "branch", "blocks": new}
        run(write(folder, substrate=None, model=str(folder / "llama"), plan=plan, output=str(folder / name)))
        noted = json.loads((folder / name / "config.json").read_text())["treering_trunk"]
        model = load_model(folder / "llama")
        names = parts.path(model.config, model.state_dict())
        own = {"trunk": trunk_name(names["blocks"]), "embedding": names["embedding"], "head": names["head"]}
        assert noted == {"base": "llama", "blocks": 2, **own}
    experts = [f"{name}={folder / place}" for name, place in (("base", "llama"), ("ru", "ru"), ("zh", "zh"))]
    joined = CliRunner().invoke(app, ["compose", *experts, "-o", str(folder / "joined")])
    assert joined.exit_code == 0, joined.output
    assert len(list((folder / "joined").glob("trunk-*.safetensors"))) == 1
    alone = sum(path.stat().st_size for path in folder.glob("ru/model.safetensors"))
    assert sum(path.stat().st_size for path in (folder / "joined").glob("*.safetensors")) < 2 * alone

    for name in ("ru", "zh"):
        cut = CliRunner().invoke(app, ["compose", "cut", str(folder / name), "-o", str(folder / f"{name}-cut")])
        assert cut.exit_code == 0, cut.output
        assert not (folder / f"{name}-cut" / "model.safetensors").exists()
    cuttings = [f"base={folder / 'llama'}", f"ru={folder / 'ru-cut'}", f"zh={folder / 'zh-cut'}"]
    handed = CliRunner().invoke(app, ["compose", *cuttings, "-o", str(folder / "handed")])
    assert handed.exit_code == 0, handed.output
    for shard in (folder / "joined").glob("*.safetensors"):
        assert (folder / "handed" / shard.name).read_bytes() == shard.read_bytes()
    said = told(monkeypatch, capsys, "generate", folder / "ru-cut", "x")
    assert "needs the model that it was grown on, llama" in said and own["trunk"] in said

    changed = load_file(folder / "llama" / "model.safetensors")
    changed["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(changed, folder / "llama" / "model.safetensors", metadata={"format": "pt"})
    said = told(monkeypatch, capsys, "compose", *experts, "-o", folder / "other")
    assert "do not stand on one trunk; the first difference is in block 2 of 2" in said and "grown on llama" in said
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    "noted", [3, {"base": "llama"}, {"base": "llama", "blocks": "2"}, {"base": 1, "blocks": 10**9}]
)
def test_a_damaged_note_of_the_trunk_is_one_message(folder, monkeypatch, capsys, noted):
    place = folder / "llama" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"treering_trunk": noted}))
    said = told(
        monkeypatch, capsys, "compose", f"a={folder / 'llama'}", f"b={folder / 'llama'}", "-o", folder / "other"
    )
    assert "says of its trunk is damaged (treering_trunk" in said


def test_the_commented_recipe_is_what_a_branch_does_without_one():
    given = {"model": "m", "data": "d", "output": "o"}
    path = Path(treering.__file__).parent / "recipes" / "branch.yaml"
    recipe = load_recipe(path, recipes.GrowthRecipe, given)
    assert recipe == recipes.GrowthRecipe.model_validate(given | {"plan": {"way": "branch", "blocks": 2}})
    assert recipes.as_plan(recipe.plan, 5) == recipes.as_plan(recipes.PLANS["branch"], 5)


def test_what_a_recipe_says_of_a_branchs_training_stands(folder):
    fields = {"substrate": None, "model": str(folder / "llama"), "plan": {"way": "branch", "from": 1}}
    run(write(folder, **fields))
    settings = json.loads((folder / "out" / "training.json").read_text())["settings"]
    assert settings["tokens"] == TRAINING["tokens"] and settings["epochs"] is None
    assert settings["learning_rate"] == 1e-3  # of copies
    grown = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert grown.config.num_hidden_layers == 2  # the upper block is the branch's own copy
    run(write(folder, **fields, training=TRAINING | {"learning_rate": 0.5}, output=str(folder / "other")))
    assert json.loads((folder / "other" / "training.json").read_text())["settings"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("plan", "rate", "epochs"),
    [
        ("branch", 3e-3, 2),
        (recipes.Branch(), 3e-3, 2),
        ({"way": "branch", "from": 0, "blocks": 3}, 3e-3, 2),
        ({"way": "branch", "from": 2}, 1e-3, 1),
        (recipes.Branch.model_validate({"from": 2}), 1e-3, 1),
    ],
)
def test_copies_train_gently_and_once(plan, rate, epochs):
    fields = {"model": "m", "data": "d", "output": "o", "plan": plan}
    found = recipes.GrowthRecipe.model_validate(fields).training
    assert (found.learning_rate, found.epochs, found.tokens) == (rate, epochs, None)
    told = recipes.GrowthRecipe.model_validate(fields | {"training": {"epochs": 5, "learning_rate": 0.1}}).training
    assert (told.learning_rate, told.epochs, told.warmup) == (0.1, 5, 0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan": {"way": "branch", "from": 3}}, "cannot leave the trunk 3 blocks below the top: the model has 2"),
        ({"plan": {"way": "branch", "form": 3}}, r"recipe.yaml:\d+: plan.form: .*did you mean 'from'"),
        (
            {"plan": {"way": "branch", "depth": 3}},
            r"plan.depth: there is no such field; there are way, blocks, from, head",
        ),
        ({"plan": {"way": "branch", "blocks": 0}}, "no block of its own"),
        ({"plan": "branch", "model": None, "substrate": "substrate"}, "give model, not substrate"),
        (
            {"plan": {"way": "monolithic", "depth": 2, "head": "frozen"}, "model": None, "substrate": "substrate"},
            r"Stage 1 freezes the head .*\(substrate:\)",
        ),
        ({"abilities": 0.5}, "abilities"),
        ({"model": "nothing.gguf"}, "There is no file nothing.gguf"),
    ],
)
def test_what_is_wrong_with_a_branch_is_one_message(folder, monkeypatch, capsys, fields, message):
    monkeypatch.chdir(folder)
    said = refused(
        monkeypatch, capsys, write(folder, **{"substrate": None, "model": "llama", "plan": "branch"} | fields)
    )
    assert re.search(message, said.replace("\n", " ")), said
    assert not list(folder.glob("out*"))


def test_a_plan_that_is_no_recipe_and_no_name(folder, monkeypatch, capsys):
    assert "There is no recipe brunch" in refused(monkeypatch, capsys, "brunch", "--model", folder / "llama")
    said = refused(monkeypatch, capsys, "branch", "--model", folder / "llama")
    assert "command line: data: this field is required" in said
    assert "command line: output: this field is required" in said


@pytest.mark.parametrize(("asked", "expected"), [(None, 20), (True, None), (7, 7)])
def test_a_large_model_is_measured_on_few_documents_unless_a_recipe_says_otherwise(
    asked, expected, foreign, monkeypatch
):
    assert recipes.measured(asked, foreign()) == (7 if asked == 7 else None)
    monkeypatch.setattr(recipes, "LARGE", 100)
    assert recipes.measured(asked, foreign()) == expected


@pytest.mark.parametrize("name", [name for name in recipes.PLANS if name != "branch"])
def test_ready_plans_by_name(folder, name):
    shown = run(write(folder, training=TRAINING | {"tokens": 100_000}), "--plan", name, "--dry-run").stdout
    assert f"{recipes.PLANS[name].depth}" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan": "paper-7"}, r"recipe.yaml:\d+: plan: .*no plan 'paper-7'; there are paper-6"),
        (
            {"plan": {"way": "stack", "depth": 3}},
            r"recipe.yaml:\d+: plan.way: input should be 'looped', 'copied', 'turns', 'stacked'",
        ),
        ({"plan": {"width": 3}}, r"recipe.yaml:\d+: plan.depth: this field is required"),
        ({"plan": {"stages": [{"new": "2-3", "share": 1}]}}, "skips blocks: the next would be 1-2"),
        ({"plan": {"stages": [{"new": "1", "share": 1}, {"new": "1", "share": 1}]}}, "has some of them already"),
        ({"plan": {"stages": [{"new": "1", "share": 1}], "budget": 1000}}, "more than the plan's budget of 1,000"),
        ({"plan": {"stages": [{"new": "1", "share": 1, "rat": 2}]}}, r"plan.stages.0.rat: .*did you mean 'rate'"),
        ({"plan": {"stages": [{"new": "x", "share": 1}]}}, 'plan.stages.0.new: .*write blocks as "3", "1-3"'),
        ({"plan": {"stages": [{"new": 1, "share": 1, "lora": {"ranks": 1}}]}}, "stages.0.lora.ranks: .*mean 'rank'"),
        ({"model": "llama"}, "give either substrate"),
        ({"substrate": None}, "give either substrate"),
        ({"backbone": {"preset": "tiny", "layers": 3}}, "the plan's stages add the blocks"),
        ({"backbone": {"preset": "small"}}, "The substrate is 64 wide, the backbone 192"),
        ({"prefix": "float16"}, "prefix"),
        ({"substrate": "runs/nope"}, "There is no substrate at runs/nope; `treering substrate build`"),
        ({"data": "nowhere"}, "not a prepared corpus"),
        (
            {"plan": {"stages": [{"new": "1", "share": 0.5}, {"new": "2", "share": 0.5, "lora": {"targets": ["up"]}}]}},
            "LoRA cannot update up: a block of gpt_neox has",
        ),
    ],
)
def test_what_is_wrong_is_one_message(folder, monkeypatch, capsys, fields, message):
    said = refused(monkeypatch, capsys, write(folder, **fields))
    assert re.search(message, said.replace("\n", " ")), said
    assert not list(folder.glob("out*"))


def test_a_corpus_of_another_tokenizer_is_told_before_anything_is_shown(folder, pages, monkeypatch, capsys):
    (folder / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in pages["en"]))
    other = tokenizers.train({"en": pages["en"]}, 400)
    treering.prepare([folder / "pages.jsonl"], other, folder / "other", block_size=32)
    said = refused(monkeypatch, capsys, write(folder, data=str(folder / "other")), "--dry-run")
    assert "the same IDs would mean other text" in said.replace("\n", " "), said


def test_a_checkpoint_of_another_depth_than_the_plan_continues(folder, monkeypatch, capsys):
    plan = {"stages": [{"new": "5", "share": 1.0}]}
    path = write(folder, substrate=None, model=str(folder / "llama"), backbone=None, plan=plan)
    assert "adds blocks 5 to a stack of 2, which skips blocks" in refused(monkeypatch, capsys, path)


def test_a_family_that_is_not_supported(folder, monkeypatch, capsys, tokenizer):
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        folder / "g"
    )
    tokenizers.save(tokenizer, folder / "g")
    path = write(folder, substrate=None, model=str(folder / "g"), backbone=None)
    assert "family 'bloom' are not supported" in refused(monkeypatch, capsys, path)


def test_an_output_that_is_there_is_left_alone(folder, monkeypatch, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("x")
    assert "already exists with other content" in refused(monkeypatch, capsys, write(folder))
    assert [path.name for path in (folder / "out").iterdir()] == ["mine"]
