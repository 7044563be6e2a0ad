from __future__ import annotations

import json
import os
import shutil
import signal
from itertools import islice, pairwise

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoXForCausalLM, set_seed

from treering import backbone
from treering import tokenizer as tokenizers
from treering.composition import compose_directories
from treering.errors import Interrupted, TreeringError
from treering.growth import Lora, Plan, Stage, deepen, grow, monolithic, reading_order, revolving, stacked, survey
from treering.growth import growing as growing_module
from treering.growth.plan import Turns
from treering.growth.prefix import PrefixCache
from treering.training import Training
from treering.training.checkpoints import AtomicTrainer


@pytest.fixture
def settings():
    """Twelve steps of 256 tokens, a checkpoint every second."""
    return Training(tokens=3072, batch_tokens=256, micro_batch_tokens=128, evaluations=2, checkpoint_steps=2)


@pytest.fixture
def constant(settings):
    """A rate that stays, and no decay: what an AdamW by hand does."""
    return settings.model_copy(update={"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0})


@pytest.fixture
def given(monkeypatch):
    """The moments with which the optimiser of each stage begins, as stages run."""
    found = []
    monkeypatch.setattr(
        AtomicTrainer,
        "create_optimizer",
        lambda self, create=AtomicTrainer.create_optimizer: found.append(self.moments) or create(self),
    )
    return found


def tensors(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def losses(directory):
    return [e["loss"] for e in json.loads((directory / "history.json").read_text()) if "loss" in e]


def test_every_stage_leaves_a_plain_model_and_what_was_frozen_as_it_was(growing, fresh, settings, substrate, tmp_path):
    model = fresh()
    result = growing(model, tmp_path / "out", stacked(3), settings)
    assert [(s.number, s.depth, s.new, s.tokens) for s in result.stages] == [
        (1, 1, "1", 1024),
        (2, 2, "2", 1024),
        (3, 3, "3", 1024),
    ]
    assert not (tmp_path / "out.unfinished").exists()
    stages = [tensors(tmp_path / "out" / "stages" / str(number)) for number in (1, 2, 3)]
    for earlier, later in pairwise(stages):
        kept = [name for name in earlier if ".layers." in name or "embed_in" in name]
        assert all(earlier[name].equal(later[name]) for name in kept)
        assert not earlier["embed_out.weight"].equal(later["embed_out.weight"])
    assert stages[2]["gpt_neox.embed_in.weight"].equal(substrate.matrix)
    ids = torch.arange(20)[None]
    for number in (1, 2, 3):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "stages" / str(number)).eval()
        assert type(loaded) is GPTNeoXForCausalLM and loaded.config.num_hidden_layers == number
        assert loaded.config.treering["fingerprint"] == substrate.fingerprint
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert final(ids).logits.equal(model.eval()(ids).logits)
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [e["tokens"] for e in history if "loss" in e] == [256 * step for step in range(1, 13)]
    assert [e["stage"] for e in history if "loss" in e] == [1] * 4 + [2] * 4 + [3] * 4
    record = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert [stage["validation_bits_per_byte"] for stage in record["stages"]] == [
        stage.validation_bits_per_byte for stage in result.stages
    ]


ON_TOP = (
    Stage(new="1", start="random", share=1 / 3),
    Stage(new="2", share=1 / 3, keep_moments=True),
    Stage(new="3", train="2-3", start="copy", share=1 / 3, keep_moments=True),
)
TIED = (
    Stage(new="1", start="random", share=0.25),
    Stage(new="2-5", start="zero", tied=2, share=0.5),
    Stage(train="2-5", turns=Turns(width=2, steps=1), share=0.25, keep_moments=True),
)


@pytest.mark.parametrize("prefix", ["recompute", "float32"])
@pytest.mark.parametrize(
    ("stages", "passes", "stopped", "complete"),
    [  # passes of the whole run, two a step, in which Ctrl-C is pressed
        (ON_TOP, (3, 18), ("Stopped at step 2 of 4", "Stopped at step 1 of 4"), ["1", "2"]),
        (TIED, (12,), ("Stopped at step 3 of 6",), ["1"]),
    ],
    ids=["on top", "tied"],
)
def test_stopped_and_resumed_is_the_same_to_the_bit(
    growing, fresh, settings, tmp_path, monkeypatch, prefix, stages, passes, stopped, complete
):
    plan, seen = Plan(stages=stages), []
    growing(fresh(), tmp_path / "whole", plan, settings, prefix=prefix)

    def interrupt(trainer, *args, **kwargs):
        seen.append(1)
        if len(seen) in passes:
            os.kill(os.getpid(), signal.SIGINT)
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicTrainer, "training_step", interrupt)
        for message in stopped:
            with pytest.raises(Interrupted, match=message):
                growing(fresh(), tmp_path / "parts", plan, settings, prefix=prefix)
    assert [path.name for path in sorted((tmp_path / "parts.unfinished" / "stages").glob("?"))] == complete
    growing(fresh(), tmp_path / "parts", plan, settings, prefix=prefix)
    for place in ("", "stages/1", "stages/2"):
        ours, theirs = (tmp_path / name / place / "model.safetensors" for name in ("parts", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_cached_prefix_trains_as_a_recomputed_one(growing, settings, tmp_path, fresh):
    results = {}
    for prefix in ("recompute", "float32", "bfloat16"):
        growing(fresh(), tmp_path / prefix, stacked(3), settings, prefix=prefix)
        results[prefix] = losses(tmp_path / prefix)
    assert results["float32"] == pytest.approx(results["recompute"], rel=1e-5)
    assert results["bfloat16"] == pytest.approx(results["recompute"], rel=1e-3)
    assert results["bfloat16"] != results["recompute"]


def test_a_stage_is_a_plain_training_loop(growing, fresh, constant, tmp_path, corpus):
    """Two stages against transformers' own forward, AdamW and a loop over the documented order."""
    settings = constant.model_copy(update={"tokens": 2048})
    growing(fresh(), tmp_path / "out", stacked(2), settings)
    model, rows = fresh(), iter(reading_order(len(corpus.train), 0, 0, 32).tolist())
    expected = []
    for number in (1, 2):
        set_seed(number)
        deepen(model, (number,), "random")
        trained = [*backbone.blocks(model)[number - 1].parameters(), *backbone.final_norm(model).parameters()]
        trained.append(backbone.head(model).weight)
        optimiser = torch.optim.AdamW(trained, 3e-3, betas=(0.9, 0.99), weight_decay=0)
        for _ in range(4):
            ids = torch.tensor([corpus.train[row]["input_ids"].tolist() for row in islice(rows, 4)])
            loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            model.zero_grad()
            expected.append(loss.item())
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=2e-4)


def test_the_reading_order_goes_through_the_corpus_again_and_again():
    order = reading_order(10, 3, 0, 25)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    for start, count in ((0, 4), (7, 6), (10, 10), (19, 6)):
        assert reading_order(10, 3, start, count).tolist() == order[start : start + count].tolist()


def test_an_existing_model_grows_from_where_it_is(growing, foreign, settings, tmp_path):
    model = foreign()
    old = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.no_grad():
        ids = torch.arange(40)[None] * 3 % 700
        before = model(ids).logits
    result = growing(model, tmp_path / "out", Plan(stages=(Stage(new="3-4", share=1.0),)), settings)
    loaded = tensors(tmp_path / "out")
    kept = [name for name in old if "layers." in name or "embed" in name]
    assert len(kept) > 15 and all(loaded[name].equal(old[name]) for name in kept)
    assert not loaded["model.norm.weight"].equal(old["model.norm.weight"])
    again = foreign()
    deepen(again, (3, 4), "zero")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, before, rtol=0, atol=0)
    first, last = result.history[0]["loss"], [e["loss"] for e in result.history if "loss" in e][-1]
    assert last < first


def test_a_tied_head_is_freed_and_the_embedding_stays(growing, foreign, settings, tmp_path):
    model = foreign(tie_word_embeddings=True)
    table = backbone.embedding(model).weight.clone()
    growing(model, tmp_path / "out", Plan(stages=(Stage(new="3", share=1.0),)), settings)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings is False
    assert backbone.embedding(loaded).weight.equal(table)
    assert not backbone.head(loaded).weight.equal(table)


def test_low_windows_train_under_frozen_ones(growing, fresh, settings, tmp_path):
    growing(fresh(), tmp_path / "out", revolving(4, 2, order=[1, 0]), settings)
    jump, low = (tensors(tmp_path / "out" / "stages" / n) for n in ("2", "3"))
    changed = {name.split(".")[2] for name in jump if ".layers." in name and not jump[name].equal(low[name])}
    assert changed == {"0", "1"}


def test_low_rank_updates_are_merged(growing, fresh, settings, tmp_path):
    plan = Plan(
        stages=(Stage(new="1-2", start="random", share=0.5), Stage(new="3", lora=Lora(rank=2), share=0.5)),
    )
    growing(fresh(), tmp_path / "out", plan, settings)
    before, after = (tensors(tmp_path / "out" / "stages" / n) for n in ("1", "2"))
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    update = after[name] - before[name]
    assert torch.linalg.matrix_rank(update, rtol=1e-3) == 2
    norm = "gpt_neox.layers.0.input_layernorm.weight"
    assert after[norm].equal(before[norm])
    assert not any("lora" in name for name in after)


def plain_losses(model, corpus, parts, turn, steps=12):
    """By transformers' own forward and an AdamW for each of ``parts``, of which those that ``turn(step)`` says step."""
    optimisers = [torch.optim.AdamW(part, 3e-3, betas=(0.9, 0.99), weight_decay=0) for part in parts]
    rows, found = iter(reading_order(len(corpus.train), 0, 0, 48).tolist()), []
    for step in range(steps):
        ids = torch.tensor([corpus.train[row]["input_ids"].tolist() for row in islice(rows, 4)])
        loss = model(ids, labels=ids, use_cache=False).loss
        found.append(loss.item())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for part in turn(step) for p in parts[part]], 1.0)
        for part in turn(step):
            optimisers[part].step()
    return found


def test_blocks_by_turns_are_a_loop_over_windows(growing, fresh, constant, tmp_path, corpus):
    stage = Stage(new="1-3", start="random", turns=Turns(width=2, steps=2), share=1.0)
    growing(fresh(), tmp_path / "out", Plan(stages=(stage,)), constant)
    model = fresh()
    set_seed(1)
    deepen(model, (1, 2, 3), "random")
    stack = backbone.blocks(model)
    always = [*backbone.final_norm(model).parameters(), backbone.head(model).weight]
    parts = [[*stack[1].parameters(), *stack[2].parameters()], [*stack[0].parameters()], always]
    expected = plain_losses(model, corpus, parts, lambda step: [step // 2 % 2, 2])
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=3e-4)


def test_the_head_by_turns_is_a_loop_over_windows(growing, fresh, constant, tmp_path, corpus):
    stage = Stage(new="1-3", start="random", turns=Turns(width=2, steps=2, head=True), share=1.0)
    growing(fresh(), tmp_path / "out", Plan(stages=(stage,)), constant)
    model = fresh()
    set_seed(1)
    deepen(model, (1, 2, 3), "random")
    stack, head = backbone.blocks(model), [*backbone.final_norm(model).parameters(), backbone.head(model).weight]
    windows = [[*stack[1].parameters(), *stack[2].parameters()], [*stack[0].parameters(), *head]]
    expected = plain_losses(model, corpus, windows, lambda step: [step // 2 % 2])
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=3e-4)


def test_tied_blocks_are_a_loop_over_few_and_go_on_apart(growing, fresh, constant, tmp_path, corpus):
    """Against a plain loop over a stack in which the two modules stand twice, and then copies of them."""
    loop = Stage(new="1-4", start="random", tied=2, share=0.5)
    apart = Stage(train="1-4", share=0.5, keep_moments=True, warmup=0.0)
    result = growing(fresh(), tmp_path / "out", Plan(stages=(loop, apart)), constant)
    assert [(stage.train, stage.active < stage.total) for stage in result.stages] == [("1-4 as 2", True), ("1-4", True)]
    model = fresh()
    set_seed(1)
    deepen(model, (1, 2, 3, 4), "random")
    stack = backbone.blocks(model)
    stack[2], stack[3] = stack[0], stack[1]
    trained = [*stack.parameters(), *backbone.final_norm(model).parameters(), backbone.head(model).weight]
    expected = plain_losses(model, corpus, [trained], lambda step: [0], 6)
    assert losses(tmp_path / "out")[:6] == pytest.approx(expected, rel=3e-4)
    middle = tensors(tmp_path / "out" / "stages" / "1")
    final = tensors(tmp_path / "out")
    name = "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight"
    assert middle[name.format(0)].equal(middle[name.format(2)]) and middle[name.format(1)].equal(middle[name.format(3)])
    assert not middle[name.format(0)].equal(middle[name.format(1)])
    assert not final[name.format(0)].equal(final[name.format(2)])


def test_what_comes_apart_has_the_optimisers_state_of_what_it_was_tied_to(growing, fresh, settings, tmp_path, given):
    plan = Plan(
        stages=(
            Stage(new="1", start="random", share=1 / 3),
            Stage(new="2-4", start="random", tied=1, share=1 / 3),
            Stage(train="1-4", share=1 / 3, keep_moments=True),
        )
    )
    growing(fresh(), tmp_path / "out", plan, settings, prefix="float32")
    name = "gpt_neox.layers.{}.attention.dense.weight"
    kept = [given[2][name.format(index)]["exp_avg"] for index in range(1, 4)]
    assert kept[0].equal(kept[1]) and kept[1].equal(kept[2]) and kept[0].abs().sum() > 0
    assert name.format(0) not in given[2] or not given[2][name.format(0)]["exp_avg"].equal(kept[0])


def test_by_turns_only_the_window_has_gradients_and_a_stopped_run_goes_on(
    growing, fresh, settings, tmp_path, monkeypatch
):
    plan = Plan(stages=(Stage(new="1-3", start="random", turns=Turns(width=1, steps=2), share=1.0),))
    growing(fresh(), tmp_path / "whole", plan, settings)
    seen = []

    def watch(trainer, model, *args, **kwargs):
        loss = AtomicTrainer.__base__.training_step(trainer, model, *args, **kwargs)
        own = {name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None and ".layers." in name}
        seen.append((trainer.state.global_step, own))
        if len(seen) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(AtomicTrainer, "training_step", watch)
        with pytest.raises(Interrupted, match="step 5 of 12"):
            growing(fresh(), tmp_path / "parts", plan, settings)
        growing(fresh(), tmp_path / "parts", plan, settings)
    assert all(own == {"210"[step // 2 % 3]} for step, own in seen)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_a_copy_goes_on_with_the_optimisers_state_of_what_it_copies(growing, fresh, settings, tmp_path, given):
    plan = Plan(
        stages=(
            Stage(new="1-2", start="random", share=0.5),
            Stage(new="3-5", train="1-5", start="loop", share=0.5, keep_moments=True),
        )
    )
    growing(fresh(), tmp_path / "out", plan, settings)
    name = "gpt_neox.layers.{}.attention.dense.weight"
    kept = [given[1][name.format(index)]["exp_avg"] for index in range(5)]
    assert kept[0].equal(kept[2]) and kept[0].equal(kept[4]) and kept[1].equal(kept[3])
    assert not kept[0].equal(kept[1])


def test_moments_go_on_only_where_asked(growing, fresh, settings, tmp_path, given):
    plan = Plan(
        stages=(
            Stage(new="1", start="random", share=0.25),
            Stage(new="2", share=0.25),
            Stage(new="1", insert=True, share=0.25, keep_moments=True),
            Stage(train="3", share=0.25, keep_moments=True),
        )
    )
    growing(fresh(), tmp_path / "out", plan, settings)
    assert given[0] == given[1] == {}
    layers = [{name.split(".")[2] for name in moments if ".layers." in name} for moments in given[2:]]
    assert layers == [{"2"}, {"0", "2"}]  # block 2 moved up; what was trained without keeping is forgotten
    assert all("lm_head.weight" in moments for moments in given[2:])
    assert given[2]["lm_head.weight"]["step"] == 3


def test_a_stage_killed_as_it_is_stored_begins_with_the_moments_it_had(growing, fresh, settings, tmp_path, monkeypatch):
    settings = settings.model_copy(update={"checkpoint_steps": 100})  # so that the stage begins again from nothing
    plan = Plan(
        stages=(
            Stage(new="1", start="random", share=1 / 3),
            Stage(train="1", share=1 / 3, keep_moments=True),
            Stage(train="1", share=1 / 3, keep_moments=True),
        )
    )
    growing(fresh(), tmp_path / "whole", plan, settings)

    def die(model, tokenizer, output, *args, export=growing_module.export, **more):
        if output.name == "2":
            raise KeyboardInterrupt
        export(model, tokenizer, output, *args, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growing_module, "export", die)
        growing(fresh(), tmp_path / "parts", plan, settings)
    for checkpoint in (tmp_path / "parts.unfinished" / "stages").glob("2.unfinished/checkpoint-*"):
        shutil.rmtree(checkpoint)
    growing(fresh(), tmp_path / "parts", plan, settings)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_a_stage_ends_early_on_a_plateau(growing, fresh, settings, tmp_path):
    settings = settings.model_copy(update={"evaluations": 6, "learning_rate": 1e-9})
    plan = Plan(
        stages=(Stage(new="1", start="random", share=0.5, patience=1), Stage(new="2", start="random", share=0.5))
    )
    result = growing(fresh(), tmp_path / "out", plan, settings.model_copy(update={"tokens": 6144}))
    assert result.stages[0].tokens < 3072
    assert result.stages[1].tokens == 3072


def test_all_plans_take_the_steps_of_one_run(fresh, corpus, settings):
    for plan in (monolithic(3), stacked(7), revolving(6, 2, rounds=1)):
        _, costs = survey(fresh(), corpus, plan, settings)
        assert sum(cost.tokens for cost in costs) == 3072


def test_a_grown_model_is_an_expert_as_any_other(growing, fresh, settings, tmp_path, expert, tokenizer, corpus):
    origin = {"data": corpus.manifest.model_dump(mode="json")}
    growing(fresh(), tmp_path / "grown", stacked(2), settings, origin=origin)
    expert(1).save_pretrained(tmp_path / "other")
    tokenizers.save(tokenizer, tmp_path / "other")
    joined = compose_directories({"grown": tmp_path / "grown", "other": tmp_path / "other"}, tmp_path / "joined")
    record = joined.config.experts[0]
    assert record["data"] == origin["data"]
    assert record["training"]["measured"]["tokens"] == 3072
    assert record["training"]["settings"]["tokens"] == 3072
    assert record["training"]["origin"]["growth"]["stage"]["number"] == 2
    stage = json.loads((tmp_path / "grown" / "stages" / "2" / "training.json").read_text())
    assert stage["measured"]["tokens"] == 1536


def test_blocks_that_cannot_be_tied_are_told_before_anything_runs(foreign, corpus, settings):
    plan = Plan(stages=(Stage(new="3", share=0.5), Stage(new="4", train="2,4", tied=1, share=0.5)))
    survey(foreign("qwen3"), corpus, plan, settings)  # a new block attends as the one below it
    wrong = Plan(stages=(Stage(new="3", share=0.5), Stage(new="4", train="1,4", tied=1, share=0.5)))
    with pytest.raises(TreeringError, match=r"Block 4 \(full_attention\) .* block 1 \(sliding_attention\)"):
        survey(foreign("qwen3"), corpus, wrong, settings)


def test_a_family_that_is_not_supported_is_refused_before_anything_is_touched(growing, tokenizer, settings, tmp_path):
    model = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TreeringError, match="Models of family 'bloom' are not supported"):
        growing(model, tmp_path / "out", stacked(3), settings)
    assert not list(tmp_path.iterdir())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_too_few_tokens_for_a_stage(fresh, corpus, settings):
    with pytest.raises(TreeringError, match="Stage 1 would take not one step of 256 tokens"):
        survey(fresh(), corpus, stacked(40), settings)


def test_another_recipes_unfinished_run_is_refused_and_kept(growing, fresh, settings, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "growth.json").write_text("{}")
    with pytest.raises(TreeringError, match="unfinished run of another recipe"):
        growing(fresh(), tmp_path / "out", stacked(2), settings)
    assert (tmp_path / "out.unfinished" / "growth.json").read_text() == "{}"


def test_damage_in_the_middle_of_a_stage_loses_nothing(growing, fresh, settings, tmp_path, monkeypatch):
    growing(fresh(), tmp_path / "whole", stacked(2), settings, prefix="float32")
    seen = []

    def damage(trainer, *args, **kwargs):
        seen.append(1)
        if len(seen) == 2 * 6 + 9:  # the passes of six steps, then into the second stage
            (path,) = (tmp_path / "parts.unfinished" / "prefix").glob("*.hidden")
            os.truncate(path, 100)
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicTrainer, "training_step", damage)
        with pytest.raises(TreeringError, match=r"prefix cache .* damaged"):
            growing(fresh(), tmp_path / "parts", stacked(2), settings, prefix="float32")
    made = []
    monkeypatch.setattr(
        PrefixCache, "_make", lambda self, *args, make=PrefixCache._make: made.append(1) or make(self, *args)
    )
    growing(fresh(), tmp_path / "parts", stacked(2), settings, prefix="float32")
    assert made == [1]
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_the_cache_may_lie_elsewhere_and_goes_with_the_run(growing, fresh, settings, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        PrefixCache,
        "_make",
        lambda self, *args, make=PrefixCache._make: made.append(self.directory) or make(self, *args),
    )
    elsewhere = tmp_path / "fast disk"
    growing(fresh(), tmp_path / "out", stacked(2), settings, prefix="int8", prefix_directory=elsewhere)
    assert made == [elsewhere / "out.prefix"]
    assert not list(elsewhere.iterdir())


def test_the_public_name():
    import treering

    assert treering.grow is grow


def test_the_best_is_kept_of_the_last_stage_and_where_that_is_asked(growing, fresh, settings, tmp_path):
    """A rate that grows until it does harm, in both stages; the first leaves what the second goes on from: its end."""
    worsens = {"tokens": 2048, "evaluations": 4, "learning_rate": 1.0, "warmup": 0.9}
    plan = Plan(stages=(Stage(new="1", start="random", share=0.5), Stage(new="2", share=0.5, keep_moments=True)))
    last = growing(fresh(), tmp_path / "last", plan, settings.model_copy(update=worsens))
    best = growing(fresh(), tmp_path / "best", plan, settings.model_copy(update=worsens | {"keep": "best"}))
    bits = [
        {e["step"]: e["eval_bits_per_byte"] for e in best.history if "eval_loss" in e and e["stage"] == stage}
        for stage in (1, 2)
    ]
    kept = min(bits[1], key=bits[1].__getitem__)
    assert kept < 4 and bits[0][4] > min(bits[0].values())
    assert [stage.validation_bits_per_byte for stage in best.stages] == [bits[0][4], bits[1][kept]]
    assert [stage.validation_bits_per_byte for stage in last.stages] == [bits[0][4], bits[1][4]]
    measured = [json.loads((tmp_path / name / "training.json").read_text())["measured"] for name in ("last", "best")]
    assert [(one["steps"], one["kept_step"]) for one in measured] == [(8, 8), (8, 4 + kept)]
    first, second = ([tensors(tmp_path / name / "stages" / n) for name in ("last", "best")] for n in ("1", "2"))
    assert all(first[0][name].equal(first[1][name]) for name in first[0])
    assert not all(second[0][name].equal(second[1][name]) for name in second[0])


def test_patience_of_a_run_is_that_of_every_stage_that_has_none(settings):
    training = settings.model_copy(update={"patience": 3})
    assert Stage(new="1", share=1.0).training(training, 1).patience == 3
    assert Stage(new="1", share=1.0, patience=1).training(training, 1).patience == 1
