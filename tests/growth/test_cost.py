from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from treering.backbone import FAMILIES, PRESETS, count_parameters, gpt_neox, preset
from treering.errors import TreeringError
from treering.growth import PLANS, Lora, Plan, Stage, branch, deepen, monolithic, stacked
from treering.growth.blocks import tied
from treering.growth.cost import cache_flops, count, require_budget, shape_of
from treering.growth.plan import Turns, steps
from treering.growth.trainable import set_trainable, untie


def counted(plan, config, tokens=10, **options):
    placed = steps(plan)
    return count(placed, [tokens] * len(placed), shape_of(config, 64), **options)


@pytest.mark.parametrize("targets", [None, ("query_key_value", "dense")])
def test_parameters_are_those_of_the_real_model(targets):
    shape = PRESETS["tiny"]
    plan = Plan(
        stages=(
            Stage(new="1-2", tokens=1),
            Stage(train="2", lora=Lora(rank=3, targets=targets), tokens=1),
        )
    )
    for cost in counted(plan, gpt_neox(shape)):
        model = AutoModelForCausalLM.from_config(gpt_neox(shape))
        assert cost.total == sum(p.numel() for p in model.parameters())
        set_trainable(model, cost.step)
        assert cost.active == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert cost.optimiser == cost.active * 8 / 2**20


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_neox"])
def test_parameters_of_every_family_and_of_its_low_rank_updates(family, foreign):
    model = foreign(family)
    plan = Plan(stages=(Stage(train="2", lora=Lora(rank=3), tokens=1, head="frozen"),))
    (cost,) = count(steps(plan, 2), [1], shape_of(model.config, 64))
    assert cost.total == sum(p.numel() for p in model.parameters())
    set_trainable(model, cost.step)
    assert cost.active == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_papers_study_trains_what_the_paper_says():
    costs = counted(PLANS["paper-9"].plan(), gpt_neox(preset("study-glyph")))
    assert [cost.active for cost in costs] == [count_parameters(preset("study-grown")).active] * 3
    assert costs[-1].total == count_parameters(preset("study-glyph")).total


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        *(("llama", plan) for plan in (branch(2), branch(2, 0, 1), branch(2, 1, 1), branch(2, 1, 0, "trained"))),
        *((family, branch(2, 1)) for family in ("mixtral", "falcon")),
    ],
)
def test_a_branch_is_counted_as_it_computes(foreign, family, plan):
    """Parameters of the real tied model, and PyTorch's own count of its matrix products."""
    model, length = foreign(family, tie_word_embeddings=True, experts_implementation="eager"), 32
    placed = steps(plan, 2)
    (cost,) = count(placed, [2 * length], shape_of(model.config, 2 * length))
    if placed[0].stage.head == "trained":
        untie(model)
    deepen(model, placed[0].stage.new, "zero")
    set_trainable(model, placed[0])
    assert cost.total == sum(p.numel() for p in model.parameters())
    assert cost.active == cost.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.set_attn_implementation("eager")
    ids = torch.randint(700, (2, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert counter.get_total_flops() == pytest.approx(cost.flops, rel=1e-3)


def test_a_plan_that_trains_the_head_at_last_counts_it_from_the_start(foreign):
    tied = foreign(tie_word_embeddings=True)
    plan = Plan(stages=(Stage(new="3", tokens=1, head="frozen"), Stage(new="4", tokens=1)))
    frozen, trained = count(steps(plan, 2), [1, 1], shape_of(tied.config, 32))
    head = tied.get_output_embeddings().weight.numel()
    assert trained.active - frozen.active == head
    assert frozen.total + shape_of(tied.config, 32).block == trained.total
    assert frozen.total == count(steps(branch(2, 1), 2), [1], shape_of(tied.config, 32))[0].total + head


def test_flops_by_hand():
    config = gpt_neox(PRESETS["tiny"])
    d, vocabulary, positions = 64, 1024, 64
    block, head = 2 * 12 * d * d + 2 * positions * d, 2 * vocabulary * d
    (whole,) = counted(monolithic(2), config)
    assert whole.flops == 10 * 3 * (2 * block + head)
    first, second = counted(stacked(2, 1), config)
    assert first.flops == 10 * 3 * (block + head)
    assert second.flops == 10 * (3 * (block + head) + block)  # the frozen block: forward alone
    assert (first.prefix_flops, second.prefix_flops) == (0, 10 * block)


@pytest.mark.parametrize(
    "stage",
    [
        Stage(new="1-4", start="random", tokens=1),
        Stage(new="1-4", train="3-4", start="random", tokens=1),
        Stage(new="1-4", train="1-2", start="random", tokens=1),
        Stage(new="1-4", start="random", tied=2, tokens=1),
    ],
)
def test_flops_against_a_counter(stage):
    """PyTorch's own count of the matrix products in a forward and backward pass of the real model."""
    config, length = gpt_neox(replace(PRESETS["tiny"], layers=4)), 64
    placed = steps(Plan(stages=(stage,)))
    # Eager attention computes what the mask hides, too: twice what a token attends to on average.
    (cost,) = count(placed, [2 * length], shape_of(config, 2 * length))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    set_trainable(model, placed[0])
    ids = torch.randint(1024, (2, length))
    with tied(model, stage.leaders()), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert counter.get_total_flops() == pytest.approx(cost.flops, rel=1e-3)


def test_by_turns_a_window_is_active_and_gradients_go_as_deep_as_it_stands():
    config = gpt_neox(PRESETS["tiny"])
    stage = Stage(new="1-4", start="random", turns=Turns(width=2), tokens=10)
    (cost,) = counted(Plan(stages=(stage,)), config)
    (two,) = counted(monolithic(2), config)
    assert cost.active == two.active
    assert cost.trained == counted(monolithic(4), config)[0].active  # and Adam's state of all is kept somewhere
    assert cost.optimiser + cost.optimiser_host == cost.trained * 8 / 2**20
    linear, attention, head = 2 * 12 * 64 * 64, 2 * 64 * 64, 2 * 1024 * 64
    assert cost.flops == 10 * ((4 + (2 + 4) / 2 + 2) * linear + (4 + 2 * (2 + 4) / 2) * attention + 3 * head)


def test_where_the_head_takes_turns_the_largest_turn_is_active():
    config = gpt_neox(PRESETS["tiny"])
    stage = Stage(new="1-6", start="random", turns=Turns(width=4, head=True), tokens=10)
    (cost,) = counted(Plan(stages=(stage,)), config)
    (two,), (four,) = counted(monolithic(2), config), counted(monolithic(4), config)
    assert two.active < cost.active == four.active - 1024 * 64 - 2 * 64  # four blocks, no head, no norm
    linear, attention, head = 2 * 12 * 64 * 64, 2 * 64 * 64, 2 * 1024 * 64
    # Forward through six; gradients through four or six; weights of three on average, and of the head in every other.
    assert cost.flops == 10 * ((6 + 5 + 3) * linear + (6 + 2 * 5) * attention + 2.5 * head)


def test_tied_blocks_compute_as_often_as_they_stand_and_are_parameters_once():
    config = gpt_neox(PRESETS["tiny"])
    (cost,) = counted(Plan(stages=(Stage(new="1-6", start="random", tied=2, tokens=10),)), config)
    (two,), (six,) = counted(monolithic(2), config), counted(monolithic(6), config)
    assert (cost.active, cost.trained, cost.total, cost.flops) == (two.active, two.active, six.total, six.flops)


def test_what_a_cache_costs_follows_what_is_still_valid():
    shape = shape_of(gpt_neox(PRESETS["tiny"]), 64)

    def blocks(*stages):
        plan = Plan(stages=tuple(Stage(tokens=1, **stage) for stage in stages))
        return cache_flops(count(steps(plan), [1] * len(stages), shape), 1, shape) / shape.block_flops

    up = [{"new": "1"}, {"new": "2"}, {"new": "3"}]
    assert blocks(*up) == 2  # one block each time
    assert blocks(*up, {"train": "3"}) == 2
    assert blocks(*up, {"train": "2"}) == 2  # that of block 1 is still there …
    assert blocks(*up, {"train": "2"}, {"train": "3"}) == 3  # … and that of block 2 stale
    assert blocks(*up, {"train": "1"}, {"train": "3"}) == 4


def test_a_budget_is_never_exceeded():
    config = gpt_neox(PRESETS["tiny"])
    (cost,) = counted(monolithic(1), config)
    plan = monolithic(1).model_copy(update={"budget": cost.active})
    require_budget(plan, [cost])
    with pytest.raises(
        TreeringError, match=rf"Stage 1 trains {cost.active:,} parameters \(block 1, final norm, head\)"
    ):
        require_budget(plan.model_copy(update={"budget": cost.active - 1}), [cost])
