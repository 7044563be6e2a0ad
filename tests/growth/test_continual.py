"""The continual study on a base that was never trained: every method, and what each is made of."""

from __future__ import annotations

import io
import json
from typing import get_args

import pytest
import torch
import yaml
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from treering import load_model
from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import compose
from treering.corpus import Source, prepare
from treering.errors import TreeringError
from treering.evaluation import document_losses, held_out_texts, search
from treering.growth import continual as module
from treering.growth.continual import ContinualRecipe, Method, averaged, continual

TASKS = ("ru", "zh", "en")


@pytest.fixture(scope="module", autouse=True)
def as_given():
    """The rates of the recipe alone, and none beyond their ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "rates", lambda values, tried: values)
        yield


def small(seed, layers=2, vocabulary=700):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 128, "tie_word_embeddings": True}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **ids)).eval()


@pytest.fixture(scope="module")
def recipe(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("continual")
    small(0, vocabulary=len(tokenizer)).save_pretrained(folder / "base")
    tokenizers.save(tokenizer, folder / "base")
    for task in TASKS:
        source = Source(path=f"embedded:{task}", name=task, limit=80)
        prepare([source], tokenizer, folder / task, block_size=64, validation=0.1, calibration=0.1)
    return {
        "model": str(folder / "base"),
        "tasks": {task: str(folder / task) for task in TASKS},
        "orders": [TASKS, TASKS[::-1]],
        "output": str(folder / "out"),
        "training": {"tokens": 2048, "batch_tokens": 512, "warmup": 0.1, "evaluations": 1},
        "rates": [1e-2, 1e-4],
        "seeds": [0],
        "documents": 2,
    }


@pytest.fixture(scope="module")
def found(recipe):
    results = continual(ContinualRecipe.model_validate(recipe), Console(file=io.StringIO()))
    return {result.method: result for result in results}


def test_every_method_has_a_matrix_for_every_order(found):
    assert list(found) == list(get_args(Method))
    for result in found.values():
        assert list(result.matrices) == ["ru, zh, en; seed 0", "en, zh, ru; seed 0"]
        for matrix in result.matrices.values():
            assert len(matrix) == 1 + len(TASKS) and all(set(row) == set(TASKS) for row in matrix)
        assert result.low < result.average < result.high
        assert result.rate == 1e-2  # the other hardly moves
        assert result.milliseconds > 0


def test_what_is_known_to_be_the_task_forgets_nothing(found):
    for method in ("branches, task known", "whole models, task known"):
        assert found[method].transfer == found[method].forgetting == 0
    assert found["branch in sequence"].transfer < 0
    known, evidence = found["branches, task known"].average, found["branches, evidence"].average
    assert known < evidence * 1.05  # evidence pays for finding out, and gains where branches agree


def test_trainable_parameters_are_alike(found, recipe):
    branch = found["branches, evidence"]
    block = sum(p.numel() for p in small(0).model.layers[0].parameters())
    assert branch.trained == 2 * block + 32
    assert found["LoRA in sequence"].trained == pytest.approx(branch.trained, rel=0.1)
    whole = small(0).num_parameters()
    assert (found["whole models, task known"].trained, branch.stored) == (whole, whole + 3 * branch.trained)
    assert found["LoRA averaged, TIES"].stored == found["LoRA in sequence"].stored == whole


def test_the_last_row_is_that_of_the_models_made_by_hand(found, recipe):
    """Evidence over base and branches, and the plain mean of the updates."""
    folder = ContinualRecipe.model_validate(recipe)
    models = {task: load_model(f"{folder.output}/runs/branch-{task}-0.01-0") for task in TASKS}
    tokenizer, base = tokenizers.load(folder.model), load_model(folder.model)
    joined = compose({"base": base, **dict(sorted(models.items()))}, "evidence", across_substrates=True)
    loras = [load_model(f"{folder.output}/runs/lora-{task}-0.01-0").state_dict() for task in TASKS]
    mean = small(0, vocabulary=len(tokenizer))
    mean.load_state_dict({name: sum(state[name] for state in loras) / 3 for name in mean.state_dict()})
    for task in TASKS:
        texts = held_out_texts([folder.tasks[task]])[task][:2]
        for method, model in (("branches, evidence", joined), ("LoRA averaged, linear", mean)):
            bits = found[method].matrices["ru, zh, en; seed 0"][-1][task]
            assert document_losses(model, tokenizer, texts).score().bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_ties_keeps_the_largest_changes_of_the_sign_that_weighs_more():
    base = small(0)
    models = [small(0) for _ in range(2)]
    place = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        for model, top in zip(models, (3.0, -1.0), strict=True):
            weight = model.get_parameter(place)
            weight += 0.001
            weight[0, : weight.shape[1]] = base.get_parameter(place)[0] + top
    merged = averaged(base, models, by_ties=True).get_parameter(place) - base.get_parameter(place)
    torch.testing.assert_close(merged[0], torch.full_like(merged[0], 3.0))
    assert averaged(base, [base, base], by_ties=False).get_parameter(place).equal(base.get_parameter(place))


def test_a_finished_study_is_only_told_again_and_the_command_line_tells_it(recipe, found, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "grow_recipe", None)
    monkeypatch.setattr(module, "document_losses", None)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    told = CliRunner().invoke(app, ["study", "continual", str(path)])
    assert told.exit_code == 0, told.output
    for method in found:
        assert method in told.output
    assert (module.Path(recipe["output"]) / "continual.png").read_bytes().startswith(b"\x89PNG")
    page = (module.Path(recipe["output"]) / "report.html").read_text()
    assert all(f'<th scope="row">{method}</th>' in page for method in found)
    rows = json.loads((module.Path(recipe["output"]) / "continual.json").read_text())
    assert [row["method"] for row in rows] == list(found)


def test_runs_of_another_study_are_not_taken_for_its_own(recipe, found):
    longer = recipe | {"training": recipe["training"] | {"tokens": 8192}}
    with pytest.raises(TreeringError, match="another training"):
        continual(ContinualRecipe.model_validate(longer), Console(file=io.StringIO()))
    with pytest.raises(TreeringError, match="another documents"):
        continual(ContinualRecipe.model_validate(recipe | {"documents": 5}), Console(file=io.StringIO()))


def test_what_does_not_fit_is_refused(recipe, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="does not name every task once"):
        ContinualRecipe.model_validate(recipe | {"orders": [["ru", "zh"]]})
    with pytest.raises(ValueError, match="two at least"):
        ContinualRecipe.model_validate(recipe | {"tasks": {"ru": recipe["tasks"]["ru"]}, "orders": []})
    prepare([Source(path="embedded:ru", limit=60)], tokenizer, tmp_path / "bare", block_size=64, validation=0.1)
    changed = recipe | {"tasks": recipe["tasks"] | {"ru": str(tmp_path / "bare")}, "output": str(tmp_path / "out")}
    with pytest.raises(TreeringError, match="sets no documents apart"):
        continual(ContinualRecipe.model_validate(changed), Console(file=io.StringIO()))
