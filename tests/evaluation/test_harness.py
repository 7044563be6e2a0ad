"""lm-eval's tasks on our models: equal to lm-eval's own ``hf`` and to the chain rule."""

from __future__ import annotations

import json
import lzma
import math
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose, load_model
from treering.errors import TreeringError
from treering.evaluation import harness
from treering.evaluation.harness import bigbench, evaluate_tasks
from treering.evaluation.harness.model import TreeringLM
from treering.evaluation.harness.small import questions
from treering.tokenizer import encode
from treering.voice import hush

PAIRS = [
    ("The menu opens", " when you click"),
    ("The menu opens", " if"),
    ("Choose one: a or b.", " a"),
    ("Choose one: a or b.", " b"),
    ("Choose one: a or b. ", "c"),
    ("", "Whole text without a context."),
    ("word " * 150, "end of what is far too long"),
]


def requests(kind, arguments):
    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def plain(expert, tokenizer, tmp_path_factory):
    """An expert's directory, as training leaves it."""
    place = tmp_path_factory.mktemp("plain")
    expert(3).save_pretrained(place)
    tokenizers.save(tokenizer, place, 96, begins_with_separator=True)
    return place


@pytest.fixture(scope="module")
def both(plain):
    """The stock harness's model, and ours, of the same checkpoint."""
    return HFLM(str(plain), device="cpu", dtype="float32"), TreeringLM(plain, device="cpu")


def test_likelihoods_are_those_of_the_stock_harness(both):
    stock, own = both
    asked = requests("loglikelihood", PAIRS)
    for (nats, greedy), (ours, our_greedy) in zip(
        stock.loglikelihood(asked, disable_tqdm=True), own.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert ours == pytest.approx(nats, abs=1e-4)
        assert our_greedy == greedy


def test_whole_texts_and_writing_are_those_of_the_stock_harness(both, pages):
    stock, own = both
    rolling = requests("loglikelihood_rolling", [(page[:400],) for page in pages["en"][:3]])
    assert own.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        stock.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-3
    )
    writing = requests("generate_until", [("The menu", {"until": ["\n"], "max_gen_toks": 8, "do_sample": False})])
    assert own.generate_until(writing, disable_tqdm=True) == stock.generate_until(writing, disable_tqdm=True)


def test_a_whole_text_costs_in_the_stock_harness_what_we_say_it_costs(plain, both, tokenizer):
    from treering.evaluation import document_losses

    text = "Click the button to open the dialog."
    ours = document_losses(load_model(plain), tokenizer, [text]).nats.sum()
    stock = both[0].loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True)[0]
    assert -stock == pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize(
    ("terminal", "quiet", "drawn"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_bars_are_drawn_on_a_terminal_that_asked_for_progress(both, monkeypatch, capsys, terminal, quiet, drawn):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    hush(quiet)
    try:
        both[1].loglikelihood(requests("loglikelihood", PAIRS[:2]))
        both[1].loglikelihood_rolling(requests("loglikelihood_rolling", [("The menu",)]))
        both[1].generate_until(requests("generate_until", [("The menu", {"until": ["\n"], "max_gen_toks": 2})]))
    finally:
        hush(False)
    shown = capsys.readouterr().err
    assert ("Tokenizing inputs" in shown) == ("reading" in shown) == bool(shown.strip()) == drawn


def test_what_a_rolling_text_taught_goes_on_from_window_to_window(expert, tokenizer, pages):
    members = {"a": expert(1), "b": expert(2)}
    models = [*members.values(), compose(members, "evidence")]
    for model in models:
        model.config.max_position_embeddings = 96
    asked = requests("loglikelihood_rolling", [(pages["en"][0][:500] + pages["ru"][0][:500],), ("",), ("short",)])
    *alone, joined = (
        TreeringLM(model, tokenizer, device="cpu").loglikelihood_rolling(asked, disable_tqdm=True) for model in models
    )
    stock = HFLM(models[-1], tokenizer=tokenizer, device="cpu").loglikelihood_rolling(asked, disable_tqdm=True)
    for index in (1, 2):  # one window: the same
        assert joined[index] == pytest.approx(stock[index], abs=1e-3)
    for index in range(3):
        assert joined[index] >= max(own[index] for own in alone) - math.log(2) - 1e-3
    assert joined[0] != pytest.approx(stock[0], abs=1e-2)


def test_evidence_of_the_context_counts_for_the_continuation(expert, tokenizer):
    model = compose({"a": expert(1), "b": expert(2)}, "evidence")
    model.config.max_position_embeddings = 96
    own = TreeringLM(model, tokenizer, device="cpu")
    found = own.loglikelihood(requests("loglikelihood", PAIRS[:4]), disable_tqdm=True)
    for (context, continuation), (nats, _) in zip(PAIRS[:4], found, strict=True):
        ids = encode(tokenizer, [context + continuation])[0]
        begin = len(encode(tokenizer, [context])[0])
        texts = [expert(n)(torch.tensor([ids])).logits[0].double().log_softmax(-1) for n in (1, 2)]
        said = [[float(text[i, ids[i + 1]]) for i in range(len(ids) - 1)] for text in texts]
        # The mixture of two whole texts, by its definition: what both make of all of it, over what of the context.
        whole = torch.logsumexp(torch.tensor([math.fsum(one) for one in said]), 0)
        before = torch.logsumexp(torch.tensor([math.fsum(one[: begin - 1]) for one in said]), 0)
        assert nats == pytest.approx(float(whole - before), abs=1e-4)


SET = {
    "name": "colours",
    "task_prefix": "Answer.\n",
    "examples": [
        {"input": "Which is a colour?", "target_scores": {"red": 1, "dog": 0, "blue": 1}},
        {"input": "Which barks?", "target_scores": {"dog": 1, "red": 0}},
    ],
}


@pytest.fixture
def sets(tmp_path):
    """A directory of question sets: choices, written answers, and one that is none."""
    (tmp_path / "colours.json.xz").write_bytes(lzma.compress(json.dumps(SET).encode()))
    (tmp_path / "sums").mkdir()
    sums = {"name": "sums", "examples": [{"input": "1 + 1 =", "target": ["2", "two"]}]}
    (tmp_path / "sums" / "task.json").write_text(json.dumps(sums))
    (tmp_path / "broken.json.xz").write_bytes(lzma.compress(json.dumps(SET).encode())[:-20])
    (tmp_path / "other.json").write_text('{"name": "other", "examples": []}')
    return tmp_path


def test_a_question_set_asks_as_bigbench_does(sets):
    found = bigbench.question_sets(sets)
    assert list(found) == ["bigbench_broken", "bigbench_colours", "bigbench_other", "bigbench_sums"]
    task = bigbench.task("bigbench_colours", found["bigbench_colours"])
    first = task["custom_dataset"]()["test"][0]
    listed = "\n  choice: blue\n  choice: dog\n  choice: red"
    assert first["question"] == f"Answer.\n\nQ: Which is a colour?{listed}\nA: "
    assert first["choices"] == ["red", "dog", "blue"]
    assert task["process_results"](first, [(-3.0, False), (-2.0, False), (-1.0, False)]) == {"acc": 1.0}
    assert task["process_results"](first, [(-3.0, False), (-1.0, False), (-2.0, False)]) == {"acc": 0.0}
    written = bigbench.task("bigbench_sums", found["bigbench_sums"])
    row = written["custom_dataset"]()["test"][0]
    assert written["process_results"](row, [" two"]) == {"exact_match": 1.0}
    assert written["process_results"](row, ["three"]) == {"exact_match": 0.0}


@pytest.mark.parametrize(("name", "told"), [("broken", "cut short"), ("other", "examples")])
def test_what_is_no_question_set_is_refused(sets, name, told):
    with pytest.raises(TreeringError, match=told):
        bigbench.task(f"bigbench_{name}", bigbench.question_sets(sets)[f"bigbench_{name}"])


def test_scores_of_a_question_set_are_counted_by_hand(plain, sets, tokenizer):
    model = load_model(plain)
    found = evaluate_tasks("m", model, tokenizer, ["bigbench_colours", "bigbench_sums"], sets, device="cpu")
    right = []
    for example in SET["examples"]:
        choices = example["target_scores"]
        asked = f"Answer.\n\nQ: {example['input']}" + "".join(f"\n  choice: {c}" for c in sorted(choices)) + "\nA:"
        likelihoods = []
        for choice in choices:
            ids, begin = encode(tokenizer, [f"{asked} {choice}"])[0], len(encode(tokenizer, [asked])[0])
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(logs[i - 1, ids[i]]) for i in range(begin, len(ids))))
        right.append(list(choices.values())[max(range(len(choices)), key=likelihoods.__getitem__)])
    assert found.answers["bigbench_colours", "acc"].tolist() == right
    scores = {row["task"]: row for row in found.scores}
    assert scores["bigbench_colours"]["value"] == sum(right) / len(right)
    assert (scores["bigbench_colours"]["count"], scores["bigbench_colours"]["measure"]) == (2, "acc")
    assert scores["bigbench_colours"]["chance"] == sum(
        1 / len(example["target_scores"]) for example in SET["examples"]
    ) / len(SET["examples"])
    assert scores["bigbench_sums"]["chance"] is None
    assert (scores["bigbench_sums"]["count"], scores["bigbench_sums"]["measure"]) == (1, "exact_match")


def test_data_of_the_hub_is_found_on_disk(plain, tmp_path):
    """ARC as its repository has it: no network is asked."""
    place = tmp_path / "allenai" / "ai2_arc" / "ARC-Easy"
    place.mkdir(parents=True)
    rows = [
        {
            "id": f"q{n}",
            "question": f"Which of these is {n}?",
            "choices": {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4],
        }
        for n in range(8)
    ]
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows).to_parquet(place / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: ARC-Easy/{split}-*\n" for split in ("train", "validation", "test"))
    (place.parent / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{files}---\n")
    options = ["--tasks", "arc_easy", "--data", str(tmp_path), "--limit", "5", "--device", "cpu", "--json"]
    options += ["-o", str(tmp_path / "page.html")]
    result = CliRunner().invoke(app, ["eval", "tasks", f"mine={plain}", *options])
    assert result.exit_code == 0, result.output
    found = {row["measure"]: row for row in json.loads(result.stdout)}
    assert found["acc"]["model"] == "mine"
    assert (found["acc"]["count"], found["acc"]["chance"], found["acc_norm"]["chance"]) == (5, 0.25, 0.25)
    assert 0 <= found["acc_norm"]["value"] <= 1
    assert found["acc"]["stderr"] >= 0
    assert '<th scope="row">arc_easy: acc</th>' in (tmp_path / "page.html").read_text().replace("<wbr>", "")


def test_a_score_has_its_interval_and_few_questions_are_warned_of(plain, sets):
    options = ["--tasks", "bigbench_colours", "--data", str(sets), "--device", "cpu"]
    done = CliRunner().invoke(app, ["eval", "tasks", str(plain), *options])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(CliRunner().invoke(app, ["eval", "tasks", str(plain), *options, "--json"]).stdout)
    assert "95% interval" in done.stdout and f"± {1.96 * row['stderr']:.4f}" in done.stdout
    assert "warning: fewer than 30 questions" in done.stderr and "bigbench_colours 2" in done.stderr


def test_a_task_that_there_is_not_is_told_before_any_model_is_loaded(plain):
    done = CliRunner().invoke(app, ["eval", "tasks", str(plain), "--tasks", "nonsense"])
    assert isinstance(done.exception, TreeringError) and "measuring" not in done.stderr


@pytest.mark.parametrize(
    ("tasks", "told"), [(["no_such_task"], "There is no task no_such_task"), (["bigbench_other"], "no question set")]
)
def test_what_cannot_be_measured_is_said(plain, sets, tokenizer, tasks, told):
    with pytest.raises(TreeringError, match=told):
        evaluate_tasks("m", load_model(plain), tokenizer, tasks, sets, device="cpu")
    with pytest.raises(TreeringError, match="no directory"):
        evaluate_tasks("m", load_model(plain), tokenizer, tasks, sets / "missing", device="cpu")


def test_small_tasks_are_those_that_their_fingerprints_name(plain, tokenizer):
    files = sorted((Path(harness.__file__).parent / "small").glob("*.yaml"))
    assert len(files) == 10
    for file in files:
        task = yaml.safe_load(file.read_text())
        rows = questions.dataset(**task["dataset_kwargs"], **task["metadata"])["test"]
        assert len(rows) > 90
        assert {len(row["choices"]) for row in rows} == {4}
    with pytest.raises(TreeringError, match="another version"):
        questions.dataset("recall", "en", fingerprint="0" * 64)
    found = evaluate_tasks("m", load_model(plain), tokenizer, ["treering_recall_*"], limit=3, device="cpu")
    assert {(row["task"], row["count"]) for row in found.scores} == {
        (f"treering_recall_{language}", 3) for language in ("ru", "zh", "en")
    }
