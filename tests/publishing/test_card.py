"""Model cards: what they tell, what they keep, and whose they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.cli.main import app
from treering.composition import add_expert, compose_directories, list_experts, remove_expert
from treering.errors import TreeringError
from treering.evaluation import generate, prompt_ids
from treering.publishing import card, renew_card, stated_licence, write_card
from treering.publishing.card import MARKER, parameters
from treering.training import train


@pytest.fixture(scope="module")
def places(expert, tokenizer, tmp_path_factory):
    """Three experts on one substrate, of which one tells of its training."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("ru", "zh", "en")):
        expert(seed, 1).save_pretrained(root / name)
        tokenizers.save(tokenizer, root / name)
    own = {"path": "embedded:ru", "licence": "MPL-2.0"}
    source = {"name": "ru", "source": own, "used_documents": 1200, "used_tokens": 90_000, "train_documents": 1200}
    record = {
        "origin": {"data": {"sources": [source], "tokenizer": {"separator": "</s>"}}, "sources": ["ru"]},
        "settings": {"learning_rate": 0.003, "schedule": "cosine", "warmup": 0.1, "precision": "float32", "seed": 7},
        "measured": {"tokens": 100_000, "validation_bits_per_byte": 1.25},
    }
    (root / "ru" / "training.json").write_text(json.dumps(record))
    return root


@pytest.fixture(scope="module")
def stranger(places, tmp_path_factory):
    """A model of its own for the records that hypothesis invents: the others stay as they are."""
    return shutil.copytree(places / "zh", tmp_path_factory.mktemp("stranger") / "zh")


def test_a_card_tells_what_the_files_tell(places, expert):
    text = card(places / "ru")
    told = ModelCard(text).data.to_dict()
    assert told == {
        "language": ["ru"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["treering", "expert"],
    }
    count = sum(p.numel() for p in expert(0, 1).parameters())
    assert parameters(places / "ru") == count
    for fact in (
        f"| parameters | {count:,} |",
        "| context | 96 tokens |",
        "100,000 tokens read, learning rate 0.003, schedule cosine",
        "1.250 bits per byte",
        "| ru | 1,200 | 90,000 | MPL-2.0 |",
        "AutoModelForCausalLM.from_pretrained",
        "no licence for the model. The text that it learned from: MPL-2.0.",
        MARKER,
    ):
        assert fact in text


def use(place):
    """The code in the card of a model."""
    code = card(place, name=str(place).strip("/")).split("```python\n")[1].split("```")[0]
    return code.replace(str(place).strip("/"), str(place)).replace("max_new_tokens=50", "max_new_tokens=2")


@pytest.mark.parametrize(
    ("apart", "keep", "told"),
    [
        (0, "last", "On the held-out documents of the same sources it has 1.250 bits per byte, packed in blocks.\n"),
        (9, "last", "On documents set apart for choosing (calibration) of the same sources it has 1.250 bits"),
        (
            9,
            "best",
            "1.250 bits per byte, by the weights of step 5 of 8, its best, packed in blocks. They also chose the",
        ),
    ],
)
def test_a_card_says_which_documents_its_bits_are_of(places, tmp_path, apart, keep, told):
    place = shutil.copytree(places / "ru", tmp_path / "ru")
    record = json.loads((place / "training.json").read_text())
    record["origin"]["data"]["calibration"] = {"documents": apart}
    record["settings"]["keep"] = keep
    record["measured"] |= {"steps": 8, "kept_step": 5 if keep == "best" else 8}
    (place / "training.json").write_text(json.dumps(record))
    assert told in card(place)


def test_a_branch_names_its_base_as_the_hub_does(places, tmp_path):
    place = shutil.copytree(places / "zh", tmp_path / "zh")
    config = json.loads((place / "config.json").read_text())
    config["treering_trunk"] = {"base": "hub:some/base", "blocks": 1}
    (place / "config.json").write_text(json.dumps(config))
    assert ModelCard(card(place)).data.base_model == "some/base"


def test_with_treering_a_published_composition_is_loaded_from_the_hub(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    assert 'treering.load_model("hub:me/pair")' in card(tmp_path / "pair", name="me/pair")


def test_a_few_lines_of_plain_transformers_write_what_treering_writes(places, tokenizer):
    exec(compile(use(places / "ru"), "card", "exec"), names := {})
    ids = torch.tensor([prompt_ids(names["model"], tokenizer, "To open the file,", 2)])
    assert names["output"][:, : ids.shape[1]].equal(ids)
    written = generate(names["model"], tokenizer, "To open the file,", 2, temperature=0)
    assert tokenizer.decode(names["output"][0], skip_special_tokens=True) == "To open the file," + written


def test_a_few_lines_of_plain_transformers_work_for_a_composition_too(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    script = f"import sys; sys.modules['treering'] = None\n{use(tmp_path / 'pair')}"
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, input="", capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "Do you wish" not in ran.stdout  # as transformers asks where the flag is missing
    assert "[transformers]" not in ran.stderr  # as its warnings begin


def test_licence_and_scores_stay_when_a_card_is_renewed(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    row = {"model": "ru", "text": "en", "rule": None, "bits_per_byte": 1.6, "low": 1.5, "high": 1.7, "documents": 12}
    renew_card(tmp_path / "pair", "Apache-2.0", [row])
    assert stated_licence(tmp_path / "pair") == "apache-2.0"
    text = renew_card(tmp_path / "pair")
    assert ModelCard(text).data.to_dict()["license"] == "apache-2.0"
    assert "| ru | en | bits per byte | 1.600 | 1.500 … 1.700 | 12 |" in text
    renew_card(tmp_path / "pair", "our own terms")
    assert ModelCard((tmp_path / "pair" / "README.md").read_text()).data.to_dict()["license"] == "other"
    assert stated_licence(tmp_path / "pair") == "our own terms"
    # Scores are of the composition that was measured; the licence is the owner's.
    add_expert(tmp_path / "pair", places / "en", "en")
    text = (tmp_path / "pair" / "README.md").read_text()
    assert stated_licence(tmp_path / "pair") == "our own terms"
    assert "1.600" not in text
    assert "3 experts (ru, zh, en)" in text
    assert remove_expert(tmp_path / "pair", "en") == []
    assert "2 experts (ru, zh)" in (tmp_path / "pair" / "README.md").read_text()


def test_somebodys_own_card_is_never_touched(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    mine = "---\nlicense: mit\n---\nMine.\n"
    (tmp_path / "pair" / "README.md").write_text(mine)
    with pytest.raises(TreeringError, match="was not written by Treering"):
        renew_card(tmp_path / "pair")
    write_card(tmp_path / "pair")
    add_expert(tmp_path / "pair", places / "en", "en")
    assert remove_expert(tmp_path / "pair", "en") == ["README.md"]
    assert (tmp_path / "pair" / "README.md").read_text() == mine


def test_training_leaves_a_card(corpus, tokenizer, expert, settings, tmp_path):
    train(expert(0), tokenizer, corpus, tmp_path / "out", settings)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "2,048 tokens read" in text
    compose_directories({"a": tmp_path / "out", "b": tmp_path / "out"}, tmp_path / "joined")
    assert [record["licence"] for record in list_experts(tmp_path / "joined")] == [None, None]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"value": 1.0}, "no rows of treering eval"),
        ({"text": "en", "value": "x"}, "no rows"),
        ({"text": "en", "value": 10**400}, "no rows"),
        ({"text": "en", "value": 1.0, "documents": -1}, "no rows"),
        (["en", 1.0], "no rows"),
    ],
)
def test_what_is_no_score_is_refused(places, row, told):
    with pytest.raises(TreeringError, match=told):
        card(places / "ru", scores=[row])
    with pytest.raises(TreeringError, match=told):
        card(places / "ru", scores=row)
    with pytest.raises(TreeringError, match="holds no model"):
        card(places)


def test_the_command_reads_what_the_eval_commands_write(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    cell = {"model": "a", "subject": "arc", "measure": "acc", "value": 0.5, "low": 0.4, "high": 0.6, "count": 99}
    task = {"model": "a", "task": "boolq", "measure": "acc", "value": 0.5, "stderr": 0.1, "count": 10, "version": 1}
    (tmp_path / "cells.json").write_text(json.dumps({"cells": [cell], "pairs": []}))
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    (tmp_path / "bad.json").write_text('{"no": "rows"}')
    files = [option for name in ("cells", "tasks") for option in ("--scores", str(tmp_path / f"{name}.json"))]
    result = CliRunner().invoke(app, ["card", str(tmp_path / "pair"), "--licence", "mit", *files])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "pair" / "README.md").read_text()
    assert "| a | arc | acc | 0.500 | 0.400 … 0.600 | 99 |" in text
    assert "| a | boolq | acc | 0.500 | 0.304 … 0.696 | 10 |" in text
    result = CliRunner().invoke(app, ["card", str(tmp_path / "pair"), "--scores", str(tmp_path / "bad.json")])
    assert isinstance(result.exception, TreeringError)


@given(
    st.recursive(
        st.none() | st.integers() | st.text("ab|`<", max_size=4) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["origin", "data", "sources", "settings", "measured", "tokens", "growth", "plan", "stages"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_whatever_a_strangers_record_holds_there_is_a_card(stranger, record):
    (stranger / "training.json").write_text(json.dumps({"origin": record, "measured": record, "settings": record}))
    assert MARKER in card(stranger)


def test_a_strangers_composition_has_to_fit_its_schema(places, tmp_path):
    compose_directories({name: places / name for name in ("ru", "zh")}, tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text())
    for experts in (["x"], 5, False, [], [{"name": "a", "weight": "heavy"}]):
        (tmp_path / "pair" / "config.json").write_text(json.dumps(config | {"experts": experts}))
        with pytest.raises(TreeringError):
            renew_card(tmp_path / "pair")


def test_a_header_that_claims_more_than_its_file_is_refused(places, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text((places / "zh" / "config.json").read_text())
    (tmp_path / "m" / "model.safetensors").write_bytes((2**31).to_bytes(8, "little") + b"{}")
    with pytest.raises(TreeringError, match="its header is longer than can be"):
        card(tmp_path / "m")
