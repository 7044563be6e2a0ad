"""What happens to the disk between two starts of a growth: whatever it is, the second ends as one never disturbed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from treering import tokenizer as tokenizers
from treering.errors import Interrupted, TreeringError
from treering.growth import GrowthRecipe, Plan, Stage, grow, grow_recipe, seedling
from treering.growth import growing as growing_module
from treering.seal import damage
from treering.training import Backbone, Training
from treering.training.checkpoints import AtomicTrainer

SETTINGS = Training(tokens=3072, batch_tokens=256, micro_batch_tokens=256, evaluations=1, checkpoint_steps=1)
PLAN = Plan(
    stages=(
        Stage(new="1", start="random", share=0.25),
        Stage(new="2", share=0.25, keep_moments=True),
        Stage(new="3", train="2-3", start="copy", share=0.5, keep_moments=True),
    )
)


@pytest.fixture(scope="module")
def run(substrate, tokenizer, corpus):
    """``run(output)``: what the run printed, from a model that is each time the same."""

    def start(output, settings=SETTINGS, prefix="auto", **more):
        torch.manual_seed(0)
        model, console = seedling(substrate, tokenizer, Backbone(preset="tiny")), Console(file=io.StringIO(), width=500)
        grow(model, tokenizer, corpus, output, PLAN, settings, prefix, console=console, **more)
        return console.file.getvalue()

    return start


def act_at(patch, step, act):
    """Let something happen as a step of the whole run begins in this process, counted from 0."""
    seen = []

    def acting(trainer, *args, **kwargs):
        seen.append(1)
        if len(seen) == step + 1:
            act()
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    patch.setattr(AtomicTrainer, "training_step", acting)


def die():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def kept(run, tmp_path_factory):
    """A finished run ``whole``, and ``parts.unfinished`` of the same, which died in the last of three stages."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        act_at(patch, 9, die)
        run(folder / "parts")
    return folder


@pytest.fixture
def parts(kept, tmp_path):
    shutil.copytree(kept / "parts.unfinished", tmp_path / "parts.unfinished")
    return tmp_path / "parts"


def flip(path, bit=0, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1 << bit
    path.write_bytes(content)


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def same(kept, parts):
    """Whether the run ended as one that was never disturbed, and left nothing else."""
    assert sorted(path.name for path in parts.parent.iterdir()) == [parts.name]
    ours, theirs = (
        {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (parts, kept / "whole")
    )
    assert ours.keys() == theirs.keys()
    losses = [
        [(e["stage"], e["step"], e.get("loss"), e.get("eval_loss")) for e in json.loads(content["history.json"])]
        for content in (ours, theirs)
    ]
    assert losses[0] == losses[1]
    times = ("history.json", "training.json", "growth.json")  # with the seconds that it took
    return all(ours[name] == theirs[name] for name in ours if not name.endswith(times))


ASIDE = r"{} cannot be used: .*\. It was put aside as {}\.damaged"
MENDED = r"{} was damaged or missing; it was made again from its copy"
STATE_GONE = r"stages/{} cannot be used: the optimiser's state after it, which another stage needs, is gone"
DAMAGE = {  # what is done to the unfinished run, which stages are trained again, and what is said
    "nothing": (lambda u: None, [], []),
    "a model flipped": (lambda u: flip(u / "stages/2/model.safetensors"), [2], [ASIDE.format("stages/2", 2)]),
    "a model cut": (lambda u: os.truncate(u / "stages/2/model.safetensors", 9), [2], [ASIDE.format("stages/2", 2)]),
    "a configuration gone": (lambda u: (u / "stages/2/config.json").unlink(), [2], ["config.json is missing"]),
    "history flipped": (lambda u: flip(u / "stages/1/history.json"), [1], [ASIDE.format("stages/1", 1)]),
    "the first stage empty": (lambda u: empty(u / "stages/1"), [1], [ASIDE.format("stages/1", 1)]),
    "the first stage gone": (lambda u: shutil.rmtree(u / "stages/1"), [1], ["stage 1 of 3"]),
    "both stages": (
        lambda u: [flip(u / f"stages/{n}/model.safetensors") for n in (1, 2)],
        [1, 2],
        [ASIDE.format(f"stages/{n}", n) for n in (1, 2)],
    ),
    "moments flipped": (
        lambda u: flip(u / "moments/2/moments.safetensors"),
        [2],
        [ASIDE.format("moments/2", 2), STATE_GONE.format(2)],
    ),
    "moments gone": (lambda u: shutil.rmtree(u / "moments/2"), [2], [STATE_GONE.format(2)]),
    "a stage and the moments before it": (
        lambda u: (flip(u / "stages/2/model.safetensors"), flip(u / "moments/1/moments.safetensors")),
        [1, 2],
        [ASIDE.format("stages/2", 2), ASIDE.format("moments/1", 1), STATE_GONE.format(1)],
    ),
    "moments that nothing needs any more": (lambda u: flip(u / "moments/1/moments.safetensors"), [], []),
    "the run's record flipped": (lambda u: flip(u / "growth.json", 1), [], [MENDED.format("growth.json")]),
    "the run's record gone": (lambda u: (u / "growth.json").unlink(), [], [MENDED.format("growth.json")]),
    "the choice of the prefix flipped": (
        lambda u: flip(u / "prefix.json", 1, 0.6),
        [],
        [MENDED.format("prefix.json")],
    ),
    "the choice of the prefix empty": (
        lambda u: (u / "prefix.json").write_text(""),
        [],
        [MENDED.format("prefix.json")],
    ),
    "the stage's record gone": (
        lambda u: (u / "stages/3.unfinished/run.json").unlink(),
        [],
        [MENDED.format("run.json")],
    ),
    "a checkpoint flipped": (
        lambda u: flip(u / "stages/3.unfinished/checkpoint-3/trained.safetensors"),
        [],
        [ASIDE.format("checkpoint-3", "checkpoint-3")],
    ),
    "a stage half written": (lambda u: (u / "stages/.3.abcdefgh.partial").mkdir(), [], []),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_is_told_and_what_is_needed_trained_again(run, kept, parts, fault, monkeypatch):
    begun = []
    run_stage = growing_module._run_stage
    monkeypatch.setattr(
        growing_module,
        "_run_stage",
        lambda run, left, *args: (begun.append(left[0].number), run_stage(run, left, *args)),
    )
    do, stages, told = DAMAGE[fault]
    do(parts.with_name("parts.unfinished"))
    said = run(parts)
    assert begun == [*stages, 3]
    for pattern in told:
        assert re.search(pattern, said), said
    assert ("cannot be used" in said or "made again" in said) == any("stage 1 of" not in pattern for pattern in told)
    assert f"going on from step {2 if fault == 'a checkpoint flipped' else 3}" in said
    assert same(kept, parts)


def test_stages_and_moments_are_sealed_while_the_run_is_unfinished(parts):
    unfinished = parts.with_name("parts.unfinished")
    for place in ("stages/1", "stages/2", "moments/1", "moments/2", "stages/3.unfinished/checkpoint-3"):
        assert damage(unfinished / place) is None
    assert not list(unfinished.rglob("*.partial"))


def test_damage_between_a_stages_end_and_the_output_is_told(run, kept, parts, monkeypatch):
    unfinished = parts.with_name("parts.unfinished")
    with monkeypatch.context() as patch:
        act_at(patch, 1, lambda: flip(unfinished / "stages/1/model.safetensors"))
        with pytest.raises(TreeringError, match=r"Stage 1 was damaged on the disk while .*same command again"):
            run(parts)
    assert not parts.exists()
    run(parts)
    assert same(kept, parts)


def test_a_choice_of_which_neither_copy_is_intact_is_refused(run, parts):
    for name in ("prefix.json", "prefix.copy.json"):
        flip(parts.with_name("parts.unfinished") / name, 1, 0.6)
    with pytest.raises(TreeringError, match=r"prefix.json and its copy are damaged"):
        run(parts)


def test_only_the_last_two_stages_keep_the_optimisers_state(kept):
    assert {path.name for path in (kept / "parts.unfinished" / "moments").iterdir()} == {"1", "2"}


def test_killed_between_the_output_and_the_cleaning_it_is_complete(run, tmp_path, monkeypatch):
    clean = growing_module.clean

    def die_at_the_end(*places):
        if len(places) == 2:
            raise KeyboardInterrupt
        clean(*places)

    kept = tmp_path.with_name("before")
    run(kept / "whole", prefix="bfloat16")
    fast = tmp_path / "fast"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growing_module, "clean", die_at_the_end)
        run(tmp_path / "parts", prefix="bfloat16", prefix_directory=fast)
    assert list(fast.iterdir())
    run(tmp_path / "parts", prefix="bfloat16", prefix_directory=fast)
    assert not list(fast.iterdir())
    fast.rmdir()
    assert same(kept, tmp_path / "parts")
    with pytest.raises(TreeringError, match="already exists"):
        run(tmp_path / "parts", prefix="bfloat16")


HOLDER = """
import sys, time
from treering.output import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_output_that_another_process_makes_is_refused(run, parts):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, parts], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TreeringError, match=rf"being written already \(pid {holder.pid}\)"):
            run(parts)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("where", ["to_train", "survey", "validation_blocks", "export", "require_sound", "finish"])
def test_sigterm_between_the_trainings_leaves_nothing_half(run, kept, parts, monkeypatch, where):
    """As the command line has it: an exception where the run stands."""

    def handler(number, frame):
        raise SystemExit(128 + number)

    def terminated(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(growing_module, where, terminated)
            run(parts)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stop.value.code == 143
    run(parts)
    assert same(kept, parts)


def test_sigterm_while_abilities_are_measured_leaves_nothing_half(run, kept, parts, monkeypatch):
    def measure(model):
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run(parts, measure=measure)
    assert not (parts.with_name("parts.unfinished") / "stages" / "3").exists()
    run(parts)
    assert same(kept, parts)


def test_divergence_names_the_stage_and_keeps_those_before(run, kept, parts, monkeypatch):
    step = AtomicTrainer.__base__.training_step
    with monkeypatch.context() as patch:
        patch.setattr(AtomicTrainer, "training_step", lambda *args, **kwargs: step(*args, **kwargs) * float("nan"))
        with pytest.raises(
            TreeringError, match=r"(?s)diverged: the loss is nan at step 4.*stages/3.unfinished/checkpoint-3"
        ):
            run(parts)
    assert not parts.exists()
    run(parts)
    assert same(kept, parts)


def test_a_checkpoint_where_a_plateau_ends_the_stage_is_not_gone_on_from(run, tmp_path, monkeypatch, substrate):
    """Stopped there, the stage would otherwise train beyond its end."""
    plan = Plan(stages=(Stage(new="1", start="random", patience=1, share=1.0),))
    settings = SETTINGS.model_copy(update={"evaluations": 6, "learning_rate": 1e-9})
    monkeypatch.setattr(sys.modules[__name__], "PLAN", plan)
    run(tmp_path / "whole", settings)
    export = growing_module.export
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growing_module, "export", lambda *args, **kwargs: die())
        run(tmp_path / "parts", settings)
    assert export is growing_module.export
    run(tmp_path / "parts", settings)
    records = [json.loads((tmp_path / name / "growth.json").read_text()) for name in ("whole", "parts")]
    assert records[0]["stages"][0]["tokens"] == records[1]["stages"][0]["tokens"] < 3072
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_interrupted_in_the_middle_it_says_so(run, kept, parts, monkeypatch):
    with monkeypatch.context() as patch:
        act_at(patch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="Stopped at step 4 of 6"):
            run(parts)
    run(parts)
    assert same(kept, parts)


def test_a_model_that_was_exchanged_meanwhile_is_another_run(foreign, tokenizer, corpus, tmp_path, monkeypatch):
    def begun():
        foreign().save_pretrained(tmp_path / "model")
        tokenizers.save(tokenizer, tmp_path / "model")
        plan = {"stages": [{"new": "3", "share": 1.0}]}
        places = {"model": str(tmp_path / "model"), "data": str(corpus.directory), "output": str(tmp_path / "out")}
        return GrowthRecipe.model_validate({**places, "plan": plan, "training": SETTINGS, "abilities": False})

    recipe = begun()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        act_at(patch, 3, die)
        grow_recipe(recipe, Console(quiet=True))
    model = foreign()
    with torch.no_grad():
        next(model.parameters())[0] += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(TreeringError, match="unfinished run of another recipe"):
        grow_recipe(recipe, Console(quiet=True))
    begun()
    grow_recipe(recipe, Console(quiet=True))
