"""How long a run reads, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from treering.errors import TreeringError
from treering.recipe import check_recipe
from treering.training import ExpertRecipe, Training, train_expert
from treering.training.length import chosen_length, lowest, too_far, too_few


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_chosen_length_is_between_one_pass_and_eight(trained, available):
    tokens, told = chosen_length(trained, available)
    assert available <= tokens <= 8 * available
    assert tokens == 20 * trained or tokens in (available, 8 * available)
    assert f"{tokens:,} tokens" in told
    assert ("more text would help" in told) == (tokens < 20 * trained)


def losses(*bits):
    validations = [{"step": 10 * n, "eval_loss": 2 * b, "eval_bits_per_byte": b} for n, b in enumerate(bits, 1)]
    return [*validations, {"loss": 1.0}]


def test_a_run_that_went_too_far_is_told():
    for keep in ("best", "last"):
        assert too_far(losses(3.0, 2.0, 1.5), keep) is None
    assert too_far(losses(3.0, 2.0, 2.001), "last") is None
    told = too_far(losses(3.0, 2.934, 3.016), "last")
    assert told.startswith("overfitting: validation was 2.934 bits/byte at step 20 and is 3.016 at the end")
    told = too_far(losses(3.0, 2.934, 3.0, 3.016), "best")
    assert told.startswith("kept step 20 of 40: validation 2.934 bits/byte; it rose to 3.016 after; fewer passes")
    told = too_far(losses(3.0, 2.0, 2.001), "best")
    assert told == "kept step 20 of 30: validation 2.000 bits/byte; it was no lower after"


def test_of_equal_validations_the_first_is_the_lowest():
    assert lowest(losses(3.0, 2.0, 2.0))["step"] == 20
    assert lowest([{"loss": 1.0}]) is None
    assert too_few(200) is None
    assert too_few(46).startswith("46 steps are few")


@pytest.fixture
def recipe(substrate, tokenizer, corpus, tmp_path):
    """A recipe's fields for a tiny expert."""
    (tmp_path / "substrate").mkdir()
    substrate.save(tmp_path / "substrate", tokenizer)
    return {
        "substrate": str(tmp_path / "substrate"),
        "data": str(corpus.directory),
        "output": str(tmp_path / "out"),
        "backbone": {"d_model": 64, "layers": 1, "heads": 2, "context": 64},
    }


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"batch_tokens": 8192, "evaluations": 1}, "8.0 passes over the corpus"),
        ({"tokens": 2048, "batch_tokens": 512, "evaluations": 1}, "warning: 4 steps are few for a model"),
    ],
)
def test_a_recipe_may_leave_the_length_open(recipe, training, said, corpus, capsys):
    train_expert(check_recipe(recipe | {"training": training}, ExpertRecipe, "test"), Console(width=400))
    assert said in capsys.readouterr().out
    record = json.loads((Path(recipe["output"]) / "training.json").read_text())
    available = len(corpus.train) * 64
    assert record["settings"]["tokens"] == training.get("tokens", 8 * available)
    assert record["settings"]["epochs"] is None


def test_two_lengths_are_refused(recipe):
    with pytest.raises(TreeringError, match="either tokens or epochs"):
        check_recipe(recipe | {"training": {"tokens": 1, "epochs": 1}}, ExpertRecipe, "test")


def test_settings_of_any_run_serve_from_python(recipe):
    given = Training(tokens=1024, warmup=0.5)
    made = ExpertRecipe.model_validate(recipe | {"training": given})
    assert made.training.model_dump() == given.model_dump()
