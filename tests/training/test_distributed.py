from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from treering.growth import reading_order
from treering.output import locked

SCRIPT = """
import json, math, os, signal, sys, torch
from treering.backbone import PRESETS, dock, gpt_neox
from treering.corpus import Corpus
from treering.errors import Interrupted, TreeringError
from treering.substrate import load
from treering.tokenizer import load as load_tokenizer
from treering.training import Training, train
from treering.training.checkpoints import AtomicTrainer
from treering.training.loss import Lesson

folder = sys.argv[1]
rank = os.environ.get("RANK", "0")

def step(trainer, model, inputs, *args):
    number = trainer.state.global_step + 1
    with open(f"{output}.read", "a") as file:  # a line is written at once
        file.writelines(json.dumps([number, ids.tolist()]) + "\\n" for ids in inputs["input_ids"])
    if number == how.get("stop") and rank == "0":
        del how["stop"]
        os.kill(os.getpid(), signal.SIGINT)
    loss = AtomicTrainer.__base__.training_step(trainer, model, inputs, *args)
    return loss * math.nan if number == how.get("diverge") and rank == "1" else loss

AtomicTrainer.training_step = step
tokenizer, substrate = load_tokenizer(folder + "/substrate"), load(folder + "/substrate")
failed = False
for output, how in json.loads(sys.argv[2]):
    torch.manual_seed(0)
    config = gpt_neox(PRESETS["tiny"])
    config.vocab_size = len(tokenizer)
    settings = Training(
        tokens=2048,
        batch_tokens=how.get("batch", 256),
        micro_batch_tokens=how.get("micro", 128),
        evaluations=1,
        checkpoint_steps=2,
    ).model_copy(update=how.get("training", {}))
    if rank == "0" and "damage" in how:
        os.unlink(f"{output}.unfinished/{how['damage']}")
    model, corpus = dock(config, substrate, tokenizer), Corpus.load(folder + "/corpus")
    lesson = Lesson(dock(config, substrate, tokenizer).eval(), how["taught"]) if "taught" in how else None
    try:
        train(model, tokenizer, corpus, output, settings, lesson=lesson)
        failed = False
    except (TreeringError, Interrupted) as error:
        print(f"process {rank}: {error}", flush=True)
        failed = True
sys.exit(2 if failed else 0)
"""


@pytest.fixture
def start(substrate, tokenizer, corpus, tmp_path):
    """``start(processes, (output, how), …)``: the exit code of the last of several runs, and what all of them said."""
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    (tmp_path / "corpus").symlink_to(corpus.directory)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def launch(processes, *runs):
        launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [] if processes == 1 else [str(processes)]
        command = [sys.executable, *launcher, tmp_path / "script.py", tmp_path, json.dumps(runs, default=str)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    return launch


def read(output):
    """By step, the blocks that all processes read in it."""
    blocks: dict[int, list] = {}
    for line in Path(f"{output}.read").read_text().splitlines():
        step, ids = json.loads(line)
        blocks.setdefault(step, []).append(ids)
    return {step: sorted(found) for step, found in blocks.items()}


@pytest.mark.slow
def test_the_same_text_in_the_same_order_whatever_the_number_of_processes(start, substrate, corpus, tmp_path):
    """Begun on one, gone on with on two and back on one, against one alone; each step reads what is documented."""
    changing, alone = tmp_path / "changing", tmp_path / "alone"
    code, said = start(1, (alone, {"micro": 256}), (changing, {"stop": 3}))
    assert alone.exists() and "process 0: Stopped at step 3 of 8" in said, said
    assert "process 0: Stopped at step 5 of 8" in start(2, (changing, {"stop": 5}))[1]
    code, said = start(1, (changing, {}))
    assert code == 0, said
    order = reading_order(len(corpus.train), 0, 0, 32).tolist()
    rows = [[int(i) for i in corpus.train[row]["input_ids"]] for row in order]
    expected = {step: sorted(rows[4 * (step - 1) : 4 * step]) for step in range(1, 9)}
    assert read(tmp_path / "changing") == read(tmp_path / "alone") == expected
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("changing", "alone")]
    initial_distance = max((weights[0][k] - substrate.matrix).abs().max() for k in weights[0] if "embed_in" in k)
    assert initial_distance == 0
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)
    assert not list(tmp_path.glob("*.unfinished"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "changing")


@pytest.mark.slow
def test_two_processes_learn_of_a_teacher_what_one_learns(start, tmp_path):
    runs = {name: (tmp_path / name, {"taught": 0.9} if "taught" in name else {}) for name in ("taught", "alone")}
    assert start(1, *runs.values())[0] == 0
    code, said = start(2, (tmp_path / "taught-2", {"taught": 0.9}))
    assert code == 0, said
    weights = {
        name: load_file(tmp_path / name / "model.safetensors")["embed_out.weight"] for name in (*runs, "taught-2")
    }
    torch.testing.assert_close(weights["taught"], weights["taught-2"], rtol=1e-3, atol=2e-5)
    assert (weights["taught"] - weights["alone"]).abs().max() > 1e-3


@pytest.mark.slow
def test_what_stops_one_process_stops_all_with_a_message(start, tmp_path):
    with locked(tmp_path / "held"):
        runs = (tmp_path / "held", {}), (tmp_path / "out", {"diverge": 4}), (tmp_path / "odd", {"batch": 192})
        code, said = start(2, *runs)
    assert code != 0
    assert len(re.findall(rf"process [01]: .*?is being written already \(pid {os.getpid()}\)", said)) == 2, said
    assert not (tmp_path / "out").exists()
    assert len(re.findall(r"process [01]: Training diverged: the .*? is.*? at step 4", said)) == 2, said
    assert [path.name for path in (tmp_path / "out.unfinished").glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(re.findall(r"process [01]: A step reads 3 blocks .*? which 2 processes cannot share evenly", said)) == 2


@pytest.mark.slow
def test_two_processes_agree_on_the_checkpoint(start, tmp_path):
    """The newest is damaged: both go on from the one before, and end as one that was never disturbed."""
    parts = tmp_path / "parts"
    damage = {"damage": "checkpoint-5/rng_state_1.pth"}
    code, said = start(2, (tmp_path / "whole", {}), (parts, {"stop": 5}), (parts, damage))
    assert "Stopped at step 5" in said
    assert code == 0, said
    assert "checkpoint-5 cannot be used" in said.replace("\n", " ") and "going on from step 4" in said
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_keep_the_same_best(start, tmp_path):
    """At a rate that grows until it does harm; stopped after the best was found."""
    worsens = {"training": {"evaluations": 8, "learning_rate": 1.0, "warmup": 0.9}}
    parts = tmp_path / "parts"
    code, said = start(2, (tmp_path / "whole", worsens), (parts, worsens | {"stop": 5}), (parts, worsens))
    assert "Stopped at step 5" in said
    assert code == 0 and "going on from step 5" in said, said
    measured = [json.loads((tmp_path / name / "training.json").read_text())["measured"] for name in ("whole", "parts")]
    assert measured[0]["kept_step"] == measured[1]["kept_step"] < 5
    assert said.count(f"kept step {measured[0]['kept_step']} of 8") == 4  # by either process, of either run
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
