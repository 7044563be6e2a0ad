"""A composition without Treering: what transformers makes of its directory by the file that lies in it."""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from test_branches import branch, small
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, GPT2Config

from treering.backbone import FAMILIES, blocks, final_norm
from treering.composition import compose, compose_directories, load_model, modeling_treering, reweight, set_rule
from treering.composition.saving import stored
from treering.inlining import inlined
from treering.registration import AUTO_MAP, CODE, LOADER

RULES = [
    "mean",
    "probability",
    "weighted",
    "weighted:pool=log",
    "evidence",
    "evidence:switch=0.01",
    "evidence:switch=0.01,cache=0.2",
    "evidence:switch=0.01,together=0.1",
    "evidence:together=0.1,cache=0.2",
    "top_k",
    "top_k:k=2,switch=0.1",
    "gate",
    "gate:switch=0.1,pool=log",
    "adapter",
]
SCRIPT = """
import sys
sys.modules["treering"] = None  # from here on nobody can import it
import json
import torch
from transformers import AutoModelForCausalLM

here, cases = sys.argv[1], json.load(open(sys.argv[1] + "/cases.json"))
ids, mask = torch.load(here + "/ids.pt")
found = {}
for place, rule in cases:
    model = AutoModelForCausalLM.from_pretrained(place, rule=rule, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    options = {"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12}
    with torch.no_grad():
        found[place, rule] = [
            model(ids).logits,
            model.generate(ids, **options),
            model.generate(ids, num_beams=3, **options),
            model.generate(ids, attention_mask=mask, **options),
        ]
torch.save(found, here + "/found.pt")
"""


def elsewhere(script, folder, *arguments):
    """Run a script in a Python that knows nothing of Treering, and whose hub's cache is empty."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hub"), "HF_MODULES_CACHE": str(folder / "modules")}
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def fitted(experts, rules=("gate", "adapter"), **options):
    """Their composition, as if what rules need had been fitted."""
    model = compose(experts, "mean", **options)
    model.config.experts[0]["weight"] = 3.0
    for rule in rules:
        model.use(rule)
        with torch.no_grad():
            model.fusion[rule].add_(0.1 * torch.randn(model.fusion[rule].shape))
    return model.use("mean")


@pytest.fixture(scope="module")
def compositions(expert):
    """By what the experts share: a substrate; trunks in trunks, norms and heads; nothing."""
    torch.manual_seed(0)
    base = small(0, 3, 700)
    ru, zh = branch(base, 1, 2), branch(base, 2, 1, head=True)
    same_head = branch(ru, 4, 2)
    bare = copy.deepcopy(base)
    tree = {"ru": ru, "base": base, "law": branch(ru, 3), "tax": same_head, "zh": zh, "upper": branch(base, 5, 1, 1)}
    gpt2 = GPT2Config(
        vocab_size=712,
        n_embd=24,
        n_layer=1,
        n_head=2,
        n_positions=96,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    gemma = Gemma2Config(
        vocab_size=704,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=6,
        initializer_range=0.3,
    )
    strangers = {"gpt2": AutoModelForCausalLM.from_config(gpt2).eval(), "ours": expert(1)}
    strangers["gemma2"] = AutoModelForCausalLM.from_config(gemma).eval()
    return {
        "substrate": fitted({"a": expert(0, 3), "b": expert(1, 1), "llama": expert(2, 2, "llama")}),
        "tree": fitted(tree),
        "twins": fitted({"base": base, "twin": bare, "zh": zh}),
        "strangers": fitted(strangers, [], across_substrates=True),
    }


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 700, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask(ids):
    """The first row begins four tokens later."""
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return mask


@pytest.fixture(scope="module")
def found(compositions, ids, mask, tmp_path_factory):
    """What is found of every composition and rule elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere")
    cases = [(name, rule) for name, model in compositions.items() for rule in RULES if can(model, rule)]
    for name, model in compositions.items():
        model.save_pretrained(folder / name)
    (folder / "cases.json").write_text(json.dumps(cases))
    torch.save((ids, mask), folder / "ids.pt")
    elsewhere(SCRIPT, folder, folder)
    return torch.load(folder / "found.pt")


def can(model, rule):
    return rule.partition(":")[0] not in ("gate", "adapter") or len(model.fusion) > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["substrate", "tree", "twins", "strangers"])
def test_it_is_the_same_model(compositions, found, ids, mask, name, rule):
    model = compositions[name]
    if not can(model, rule):
        pytest.skip("of these families nobody knows the final states")
    model.use(rule)
    logits, greedy, beams, padded = found[name, rule]
    options = {"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12}
    with torch.no_grad():
        assert logits.equal(model(ids).logits)
        assert greedy.equal(model.generate(ids, **options))
        assert beams.equal(model.generate(ids, num_beams=3, **options))
        assert padded.equal(model.generate(ids, attention_mask=mask, **options))


@pytest.fixture
def elsewhere_model(compositions, tmp_path):
    """``make(name, **options)``: a composition as it is elsewhere, but in this process."""

    def make(name, **options):
        compositions[name].save_pretrained(tmp_path / name)
        return modeling_treering.ComposedModel.from_pretrained(tmp_path / name, **options)

    return make


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.plain])
def test_it_finds_the_parts_of_every_family_that_can_share_them(family):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, initializer_range=0.3, **shape)).eval()
    grown = copy.deepcopy(base)
    for module in (blocks(grown)[2], final_norm(grown)):
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model, ids = compose({"base": base, "grown": grown}, "evidence", across_substrates=True), torch.arange(3, 23)[None]
    (trunk,) = model.tree.trunks.values()
    assert (trunk.first, trunk.last) == (0, 2)
    plain = modeling_treering.ComposedModel(
        modeling_treering.CompositionConfig.from_dict(model.config.to_dict())
    ).eval()
    assert not plain.load_state_dict(stored(model), strict=False).unexpected_keys
    with torch.no_grad():
        assert plain(ids).logits.equal(model(ids).logits)


def test_what_experts_share_is_there_once(elsewhere_model, compositions):
    for name in ("substrate", "tree", "twins"):
        count = sum(parameter.numel() for parameter in elsewhere_model(name).parameters())
        assert count == sum(parameter.numel() for parameter in compositions[name].parameters())


def test_a_text_read_in_pieces_is_the_text_read_at_once(elsewhere_model, ids):
    model, cache, pieces = elsewhere_model("tree", rule="evidence:switch=0.1"), modeling_treering.DynamicCache(), []
    with torch.no_grad():
        for piece in ids.split([3, 1, 1, 4, 11], dim=1):
            pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
        whole = model(ids)
        some = model(ids, logits_to_keep=torch.tensor([2, 5]), labels=None).logits
    torch.testing.assert_close(torch.cat(pieces, 1).softmax(-1), whole.logits.softmax(-1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(some, whole.logits[:, [2, 5]])


def test_loss_is_the_mean_surprise_of_the_labels(elsewhere_model, ids):
    with torch.no_grad():
        output = elsewhere_model("substrate", rule="evidence")(ids, labels=ids)
    surprise = -output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    torch.testing.assert_close(output.loss, surprise.mean())


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("substrate", "median", "There is no rule 'median' here. There are: mean, weighted, probability"),
        ("substrate", "evidence:swich=0.1", "The rule evidence has no 'swich'. It has: switch"),
        ("substrate", "mean:k=1", "nothing to set"),
        ("strangers", "gate", "has to be fitted first"),
    ],
)
def test_rules_that_there_are_not_are_refused(elsewhere_model, name, rule, message):
    with pytest.raises(ValueError, match=message):
        elsewhere_model(name, rule=rule)


def test_what_cannot_be_taken_back_is_said(elsewhere_model, ids):
    model = elsewhere_model("substrate", rule="evidence")
    with pytest.raises(NotImplementedError, match="install Treering"):
        model.generate(ids[:1].repeat(1, 2), prompt_lookup_num_tokens=3, max_new_tokens=20, min_new_tokens=20)


SAVE = """
import sys
sys.modules["treering"] = None
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM as Auto
model = Auto.from_pretrained("tree", trust_remote_code=True)
model.save_pretrained("again")
again, ids = Auto.from_pretrained("again", trust_remote_code=True), torch.arange(4, 24)[None]
assert again(ids).logits.equal(model(ids).logits)
assert Path("again/modeling_treering.py").is_file()
half = Auto.from_pretrained("tree", trust_remote_code=True, dtype=torch.bfloat16, attn_implementation="eager")
assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
assert {expert.config._attn_implementation for expert in half.models.values()} == {"eager"}
assert half(ids).logits.isfinite().all()
"""


def test_saved_elsewhere_it_loads_there_again(compositions, tmp_path):
    compositions["tree"].save_pretrained(tmp_path / "tree")
    elsewhere(SAVE, tmp_path)


def test_the_file_needs_torch_and_transformers_alone():
    text = inlined(CODE)
    parsed = ast.parse(text)
    compile(text, LOADER, "exec")
    for node in ast.walk(parsed):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        packages = {name.partition(".")[0] for name in names}
        assert packages <= {"torch", "transformers", "__future__"} | sys.stdlib_module_names
    top = [node.name for node in parsed.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(top) == len(set(top))


def read(place):
    return json.loads((place / "config.json").read_text())


def test_every_way_to_write_a_composition_writes_the_file(saved, tmp_path):
    compose_directories({name: saved[name] for name in ("ru", "zh")}, tmp_path / "pair")
    load_model(tmp_path / "pair").save_pretrained(tmp_path / "again")
    for place in (tmp_path / "pair", tmp_path / "again"):
        assert (place / LOADER).read_text() == inlined(CODE)
        assert read(place)["auto_map"] == AUTO_MAP


def test_a_composition_without_the_file_gets_it_when_it_changes(pair):
    (pair / LOADER).unlink()
    values = read(pair)
    del values["auto_map"]
    (pair / "config.json").write_text(json.dumps(values))
    load_model(pair)
    set_rule(pair, "mean")
    assert (pair / LOADER).read_text() == inlined(CODE)
    assert read(pair)["auto_map"] == AUTO_MAP


def test_a_strangers_file_and_what_names_it_are_replaced(pair):
    (pair / LOADER).write_text("raise SystemExit('it ran')")
    strange = {"AutoModelForCausalLM": "lab/code--model.Strange", "AutoTokenizer": "strange.S"}
    (pair / "config.json").write_text(json.dumps(read(pair) | {"auto_map": strange}))
    assert not hasattr(load_model(pair).config, "auto_map")
    reweight(pair, {"ru": 2})
    assert (pair / LOADER).read_text() == inlined(CODE)
    assert read(pair)["auto_map"] == AUTO_MAP
