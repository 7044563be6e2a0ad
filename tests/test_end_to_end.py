"""The whole job from a user's text files, by the commands of the README, and what happens when something is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from treering import load_model
from treering.cli import main
from treering.composition import DEFAULT_RULE

pytestmark = pytest.mark.slow

RECIPE = """\
substrate: {root}/substrate
data: {root}/data-{name}
output: {root}/{name}
backbone: {{preset: tiny, context: 64}}
training: {{tokens: 8192, batch_tokens: 1024, micro_batch_tokens: 1024, evaluations: 1, checkpoint_steps: 2}}
"""


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


def treering(*arguments: object) -> Ran:
    """The command in this process: the same ``main`` with its error handling, without starting Python again."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["treering", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return Ran(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> str:
    ran = treering(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory, pages) -> Path:
    """Two experts and their composition, made by commands from two text files."""
    root = tmp_path_factory.mktemp("job")
    for name in ("ru", "zh"):
        (root / f"{name}.txt").write_text("\n\n".join(pages[name] * 2), encoding="utf-8")
        (root / f"{name}.yaml").write_text(RECIPE.format(root=root, name=name))
    done("tokenizer", "train", root / "ru.txt", root / "zh.txt", "--vocab-size", 1500, "-o", root / "tokenizer")
    done("substrate", "build", root / "tokenizer", "--d-model", 64, "-o", root / "substrate")
    for name in ("ru", "zh"):
        data = root / f"data-{name}"
        done("data", "prepare", root / f"{name}.txt", "-t", root / "tokenizer", "--block-size", 64, "-o", data)
        done("train", root / f"{name}.yaml")
    done("compose", root / "ru", root / "zh", "-o", root / "composed")
    return root


def test_experts_are_plain_checkpoints(root):
    model = AutoModelForCausalLM.from_pretrained(root / "ru")
    assert type(model) is GPTNeoXForCausalLM
    text = "Чтобы открыть <pad> 要\r\n\0😀"
    tokenizer = AutoTokenizer.from_pretrained(root / "ru")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_verify_and_info(root):
    assert json.loads(done("substrate", "info", root / "substrate", "--json"))
    done("substrate", "verify", root / "substrate")
    assert "247,585,792" in done("model", "info", "study-glyph")
    assert json.loads(done("model", "info", "long-16bit", "--json"))[0]["total"] == 269_699_072


def test_eval_writes_the_one_shape(root):
    arguments = [root / "ru", f"second={root / 'zh'}", root / "composed", "--data", root / "data-ru"]
    rows = json.loads(done("eval", "bits", *arguments, "--text", f"page={root / 'zh.txt'}", "--limit", 3, "--json"))
    assert [(r["model"], r["text"], r["rule"]) for r in rows] == [
        (model, text, rule)
        for model, rule in (("uniform", None), ("ru", None), ("second", None), ("composed", DEFAULT_RULE))
        for text in ("ru", "page")
    ]
    for row in rows:
        assert set(row) == {"model", "text", "rule", "bits_per_byte", "low", "high", "documents"}
        assert 0 < row["low"] <= row["bits_per_byte"] <= row["high"] < 10
        assert row["documents"] <= 3


def test_experts_come_and_go(root, tmp_path):
    joined = tmp_path / "joined"
    done("compose", root / "ru", root / "zh", "-o", joined, "--rule", "evidence:switch=0.02")
    before = {path.name: path.read_bytes() for path in joined.iterdir()}
    done("compose", "add", joined, f"third={root / 'zh'}", "--weight", "0.5", "--licence", "CC0-1.0")
    third = json.loads(done("compose", "list", joined, "--json"))[2]
    assert (third["name"], third["weight"], third["licence"], third["origin"]) == ("third", 0.5, "CC0-1.0", "zh")
    assert third["data"]["sources"][0]["name"] == "zh"
    assert "8,192 tokens" in done("compose", "list", joined)
    done("compose", "remove", joined, "third")
    assert {path.name: path.read_bytes() for path in joined.iterdir()} == before
    done("compose", "reweight", joined, "ru=2", "zh=1")
    done("compose", "rule", joined, "mean")
    assert load_model(joined).config.rule == "mean"
    assert "Herbster" in done("compose", "rules")


def test_fit_and_forgetting(root, tmp_path):
    joined = tmp_path / "joined"
    done("compose", root / "ru", root / "zh", "-o", joined)
    texts = [part for name in ("ru", "zh") for part in ("--text", f"{name}={root / f'{name}.txt'}")]
    done("compose", "fit", joined, "--rule", "gate:switch=0.1", "--tokens", 500, *texts)
    arguments = ["--data", root / "data-ru", "--data", root / "data-zh", "--limit", 3]
    result = json.loads(done("eval", "forgetting", joined, *arguments, "--json", "-o", tmp_path / "page.html"))
    assert 'class="takeaway">Joined by gate:switch=0.1, ' in (tmp_path / "page.html").read_text()
    assert {row["rule"] for row in result["rows"]} >= {None, "mean", "evidence", "gate:switch=0.1"}
    assert {row["text"] for row in result["rows"]} == {"ru", "zh", "mixture"}
    assert {(d["text"], d["expert"]) for d in result["differences"] if d["own"]} == {("ru", "ru"), ("zh", "zh")}
    table = done("eval", "forgetting", joined, *arguments, "--rule", "mean")
    assert "oracle" in table and "change of bits per byte" in table


def test_generate_is_repeatable_and_streams_what_it_returns(root):
    texts = [done("generate", root / "composed", "Чтобы", "--tokens", 12, "--seed", 1) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("Чтобы")
    assert done("generate", root / "ru", "", "--tokens", 5, "--temperature", 0, "--beams", 2)


def test_interrupted_training_goes_on_to_the_same_bytes(root, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((root / "ru.yaml").read_text().replace(f"{root}/ru", f"{tmp_path}/again"))
    command = [sys.executable, "-m", "treering", "train", str(recipe)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if list((tmp_path / "again.unfinished").glob("checkpoint-*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode in (0, 130), stderr  # 0: it was done before the signal came
    if process.returncode == 130:
        assert "Run the same command again to go on" in stderr
        assert not (tmp_path / "again").exists()
        done("train", recipe)
    weights = [(path / "model.safetensors").read_bytes() for path in (root / "ru", tmp_path / "again")]
    assert weights[0] == weights[1]


def edited(root: Path, tmp_path: Path, old: str, new: str) -> Path:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((root / "ru.yaml").read_text().replace(f"{root}/ru", f"{tmp_path}/out").replace(old, new))
    return recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("preset: tiny", "preset: huge", "There is no preset 'huge'"),
        ("preset: tiny", "preset: small", "The substrate is 64 wide, the backbone 192"),
        ("tokens: 8192", "tokens: lots", "training.tokens: input should be a valid integer"),
        ("evaluations: 1", "evaluation: 1", "did you mean 'evaluations'"),
        ("context: 64", "context: 32", "blocks of 64 tokens, the backbone's context is 32"),
        ("data-ru", "data-none", "is not a prepared corpus"),
    ],
)
def test_recipes_that_cannot_work(root, tmp_path, old, new, message):
    ran = treering("train", edited(root, tmp_path, old, new))
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def test_corpus_of_another_tokenizer(root, tmp_path):
    done("tokenizer", "train", root / "ru.txt", "--vocab-size", 900, "-o", tmp_path / "other")
    done("data", "prepare", root / "ru.txt", "-t", tmp_path / "other", "--block-size", 64, "-o", tmp_path / "data")
    ran = treering("train", edited(root, tmp_path, f"{root}/data-ru", f"{tmp_path}/data"))
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
    assert "prepared with the tokenizer" in ran.stderr


def test_composing_across_substrates_names_both_fingerprints(root, tmp_path):
    done("substrate", "build", root / "tokenizer", "--d-model", 64, "--kind", "code", "-o", tmp_path / "code")
    recipe = edited(root, tmp_path, f"{root}/substrate", f"{tmp_path}/code")
    done("train", recipe)
    ran = treering("compose", root / "ru", f"coded={tmp_path / 'out'}", "-o", tmp_path / "composed")
    assert ran.returncode == 2
    fingerprints = [json.loads((d / "substrate.json").read_text()) for d in (root / "substrate", tmp_path / "code")]
    for record in fingerprints:
        assert record["fingerprint"] in ran.stderr
    assert not (tmp_path / "composed").exists()


def test_a_truncated_checkpoint(root, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (root / "ru").iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[:-100] if file.suffix == ".safetensors" else content)
    for command in (["generate", damaged, "x"], ["compose", damaged, root / "zh", "-o", tmp_path / "composed"]):
        ran = treering(*command)
        assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
        assert "damaged" in ran.stderr
    assert not (tmp_path / "composed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "x"], "There is no directory nowhere"),
        (["generate", "{root}/ru", "x", "--rule", "mean"], "not a composition"),
        (["generate", "{root}/composed", "x", "--rule", "median"], "no composition rule 'median'"),
        (["generate", "{root}/ru", "word " * 100], "the model's context is 64"),
        (["compose", "{root}/ru", "-o", "{new}"], "at least two experts"),
        (["compose", "{root}/ru", "{root}/ru", "-o", "{new}"], "Two models are called 'ru'"),
        (["compose", "add", "{root}/composed", "{root}/ru"], "called 'ru' already"),
        (["compose", "add", "{root}/composed", "x={root}/composed"], "is a composition"),
        (["compose", "remove", "{root}/composed", "fr"], "There is no expert 'fr'"),
        (["compose", "list", "{root}/ru"], "not a composition"),
        (["compose", "reweight", "{root}/composed", "ru"], "write NAME=WEIGHT"),
        (["compose", "reweight", "{root}/composed", "ru=much"], "which is no number"),
        (["compose", "fit", "{root}/composed"], "no text to fit on"),
        (["compose", "fit", "{root}/composed", "--data", "{root}/data-ru"], "no text to fit on"),
        (["eval", "forgetting", "{root}/ru", "--data", "{root}/data-ru"], "one expert alone"),
        (["generate", "{root}/ru", "x", "--rule", "mean"], "single gpt_neox model"),
        (["compose", "{root}/ru", "{root}/zh", "--rule", "median", "-o", "{new}"], "no composition rule 'median'"),
        (["compose", "{root}/ru", "{root}/zh", "-o", "{root}/ru"], "already exists"),
        (["eval", "bits", "{root}/ru"], "Nothing to measure on"),
        (["eval", "bits", "{root}/ru", "--text", "x={root}/none.txt"], "none.txt"),
        (["model", "info", "huge"], "There is no preset 'huge'"),
        (["demo", "-o", "{root}/ru"], "already exists with other content"),
    ],
)
def test_calls_that_cannot_work(root, tmp_path, arguments, message):
    before = sorted(p for p in root.rglob("*"))
    ran = treering(*(a.format(root=root, new=tmp_path / "new") for a in arguments))
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False), ran.stderr
    assert message in ran.stderr
    assert ran.stdout == ""
    assert sorted(p for p in root.rglob("*")) == before
    assert not (tmp_path / "new").exists()


def test_composed_logits_are_the_mean_of_the_experts(root):
    tokenizer = AutoTokenizer.from_pretrained(root / "composed")
    ids = tokenizer("Чтобы открыть диалоговое окно, 请选择", return_tensors="pt").input_ids
    script = (
        "import sys, torch; from treering import load_model\n"
        f"model = load_model({str(root / 'composed')!r}, rule='mean')\n"
        f"torch.save(model(torch.tensor({ids.tolist()})).logits, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, str(root / "logits.pt")], check=True, env=dict(os.environ))
    with torch.no_grad():
        experts = [AutoModelForCausalLM.from_pretrained(root / name)(ids).logits for name in ("ru", "zh")]
    torch.testing.assert_close(torch.load(root / "logits.pt"), sum(experts) / 2)
    (root / "logits.pt").unlink()
