"""Compositions are loaded by transformers' Auto classes wherever treering was imported, and whenever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from treering.composition import compose

LOAD = """
import sys
assert "treering.composition" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model).__module__ == "treering.composition.model"
print(type(model).__name__, model.config.rule)
"""


def run(script, *arguments):
    """What a Python of its own prints."""
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def place(expert, tmp_path_factory):
    place = tmp_path_factory.mktemp("registration") / "joined"
    compose({"a": expert(0, 1), "b": expert(1, 1)}, "mean").save_pretrained(place)
    (place / "modeling_treering.py").write_text("raise SystemExit('code of a directory ran')")
    return place


@pytest.mark.parametrize(
    "imports",
    [
        "import treering; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import treering",
        "import treering; treering.dock; from transformers import AutoModelForCausalLM",
    ],
    ids=["treering first", "transformers first", "by way of another room"],
)
def test_compositions_load_in_any_order_of_imports(place, imports):
    """Nobody is asked whether code may run, and none that lies beside the weights does."""
    assert run(imports + LOAD, str(place)) == "ComposedModel mean\n"


def test_trusted_or_not_the_class_is_treerings_own(place):
    script = (
        "import treering, sys; from transformers import AutoConfig, AutoModelForCausalLM as Auto\n"
        "print(type(Auto.from_pretrained(sys.argv[1], trust_remote_code=True)).__module__)\n"
        "print(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True).__class__.__module__)\n"
    )
    assert run(script, str(place)) == "treering.composition.model\ntreering.composition.configuration\n"


def test_a_configuration_can_be_made_by_its_name():
    script = (
        "import treering; from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('treering_composition', rule='mean').rule)"
    )
    assert run(script) == "mean\n"


def test_to_import_treering_imports_nothing_heavy():
    script = "import treering, sys; print({'torch', 'transformers', 'pydantic'} & sys.modules.keys())"
    assert run(script) == "set()\n"
