"""Checkpoints in the format of the paper's author against a plain forward written from its description."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from treering import tokenizer as tokenizers
from treering.backbone import standing
from treering.cli.main import app
from treering.composition import compose_directories, load_model
from treering.errors import TreeringError
from treering.importing import Names, fold, import_checkpoint

D, HEADS, LAYERS = 24, 3, 2
CONFIG = {"model_type": "bvv", "architectures": ["BVVForCausalLM"], "d_model": D, "n_embed": D, "block_size": 64}
CONFIG |= {"n_layer": LAYERS, "n_head": HEADS, "pad_id": 0, "auto_map": {"AutoConfig": "evil.Evil"}}
SQUARE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def random_tensors(vocabulary, biased=(), seed=0):
    """A checkpoint's tensors; of its linear layers, those named have a bias."""
    generator = torch.Generator().manual_seed(seed)

    def linear(name, rows, columns):
        weight = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        bias = {f"{name}.bias": torch.randn(rows, generator=generator)} if name.rpartition(".")[2] in biased else {}
        return {f"{name}.weight": weight} | bias

    def norm(name):
        return {
            f"{name}.weight": 1 + torch.randn(D, generator=generator) / 3,
            f"{name}.bias": torch.randn(D, generator=generator) / 3,
        }

    tensors = linear("token_embeddings", vocabulary, D) | norm("final_layernorm") | linear("lm_head", vocabulary, D)
    for number in range(LAYERS):
        at = f"transformer_layers.{number}"
        tensors |= norm(f"{at}.input_layernorm") | norm(f"{at}.post_attention_layernorm")
        for name in SQUARE:
            tensors |= linear(f"{at}.{name}", D, D)
        tensors |= linear(f"{at}.mlp.0", 4 * D, D) | linear(f"{at}.mlp.2", D, 4 * D)
    return tensors


def plain_forward(tensors, ids, rotary):
    """Logits [position, vocab], one head and one pair of numbers after the other."""

    def linear(name, x):
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name, x):
        deviation = x - x.mean(-1, keepdim=True)
        scaled = deviation / (deviation.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def turned(head):
        width, out = head.shape[-1], head.clone()
        for i in range(width // 2):
            one, other = (i, i + width // 2) if rotary == "halves" else (2 * i, 2 * i + 1)
            angle = torch.arange(len(head)) * 10_000 ** (-2 * i / width)
            out[:, one] = head[:, one] * angle.cos() - head[:, other] * angle.sin()
            out[:, other] = head[:, other] * angle.cos() + head[:, one] * angle.sin()
        return out

    x = tensors["token_embeddings.weight"][ids]
    for number in range(LAYERS):
        at = f"transformer_layers.{number}"
        read = norm(f"{at}.input_layernorm", x)
        query, key, value = (linear(f"{at}.{name}", read).chunk(HEADS, -1) for name in SQUARE[:3])
        said = []
        for q, k, v in zip(query, key, value, strict=True):
            scores = turned(q) @ turned(k).T / math.sqrt(D / HEADS)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            said.append(scores.softmax(-1) @ v)
        x = x + linear(f"{at}.{SQUARE[3]}", torch.cat(said, -1))
        inner = linear(f"{at}.mlp.0", norm(f"{at}.post_attention_layernorm", x))
        x = x + linear(f"{at}.mlp.2", inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)
    return linear("lm_head", norm("final_layernorm", x))


def write(directory, tensors, tokenizer=None, pickled=False, **config):
    """A directory as the author's are."""
    directory.mkdir()
    vocabulary = len(tensors["token_embeddings.weight"]) if "token_embeddings.weight" in tensors else 50
    (directory / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": vocabulary} | config))
    if pickled:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizers.save(tokenizer, directory)
    return directory


@pytest.mark.parametrize("rotary", ["halves", "pairs"])
@pytest.mark.parametrize(
    "biased", [(), ("0", "2"), ("lm_head",), ("q_proj", "k_proj", "v_proj", "o_proj", "0", "lm_head")]
)
@pytest.mark.parametrize("pickled", [False, True])
@torch.no_grad()
def test_logits_are_those_of_the_description(tmp_path, rotary, biased, pickled):
    tensors, ids = random_tensors(50, biased), torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(1))
    place = write(tmp_path / "theirs", tensors, pickled=pickled)
    assert not import_checkpoint(place, tmp_path / "ours", rotary)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert model.config.model_type == "gpt_neox" and model.config.max_position_embeddings == 64
    for row, logits in zip(ids, model(ids).logits, strict=True):
        torch.testing.assert_close(logits, plain_forward(tensors, row, rotary), rtol=1e-4, atol=1e-4)
    other = plain_forward(tensors, ids[0], "pairs" if rotary == "halves" else "halves")
    assert (model(ids).logits[0] - other).abs().max() > 0.05


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 1.0, 30.0]), st.sampled_from([0.0, 1.0, 10.0]))
def test_a_bias_of_the_head_goes_into_its_weights(seed, size, offsets):
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.randn(D, generator=generator), offsets * torch.randn(D, generator=generator)
    head, bias = torch.randn(40, D, generator=generator), size * torch.randn(40, generator=generator)
    x = torch.randn(20, D, generator=generator)
    expected = functional.layer_norm(x.double(), (D,), scale.double(), offset.double()) @ head.T.double() + bias
    new_scale, new_offset, new_head = fold(scale, offset, head, bias)
    found = functional.layer_norm(x, (D,), new_scale, new_offset) @ new_head.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_embedding_is_theirs_to_the_bit_and_names_no_substrate(tmp_path, tokenizer):
    tensors = random_tensors(len(tokenizer), ("lm_head",))
    assert import_checkpoint(write(tmp_path / "theirs", tensors, tokenizer), tmp_path / "ours", "halves")
    model = load_model(tmp_path / "ours")
    assert model.get_input_embeddings().weight.equal(tensors["token_embeddings.weight"])
    assert standing(model.config) is None
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizers.identity(tokenizers.load(tmp_path / "ours")) == tokenizers.identity(tokenizer)


@torch.no_grad()
def test_two_experts_in_one_checkpoint_become_a_composition_by_the_mean(tmp_path, tokenizer):
    apart = {"ru": random_tensors(len(tokenizer)), "zh": random_tensors(len(tokenizer), seed=1)}
    apart["zh"]["token_embeddings.weight"] = apart["ru"]["token_embeddings.weight"]
    both = {f"experts.{name}.{key}": tensor.clone() for name, own in apart.items() for key, tensor in own.items()}
    place = write(tmp_path / "moe", both, tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(TreeringError, match=r"Not known: .*experts\.ru\.lm_head\.weight(.|\n)*--part MODULE"):
        import_checkpoint(place, tmp_path / "whole", "halves")
    with pytest.raises(TreeringError, match=r"no tensor below experts\.de.*experts\.ru\.lm_head"):
        import_checkpoint(place, tmp_path / "de", "halves", part="experts.de")
    for name in apart:
        import_checkpoint(place, tmp_path / name, "halves", part=f"experts.{name}")
    compose_directories({name: tmp_path / name for name in apart}, tmp_path / "joined", "mean", across_substrates=True)
    ids = torch.arange(5, 25)
    expected = sum(plain_forward(own, ids, "halves") for own in apart.values()) / 2
    joined = load_model(tmp_path / "joined")
    torch.testing.assert_close(joined(ids[None]).logits[0], expected, rtol=1e-4, atol=1e-4)
    alone = sum(p.numel() for p in load_model(tmp_path / "ru").parameters())
    assert sum(p.numel() for p in joined.parameters()) == 2 * alone - len(tokenizer) * D  # one matrix for both


@torch.no_grad()
def test_other_names_can_be_told(tmp_path):
    tensors = random_tensors(50)
    renamed = {name.replace("mlp.0", "ff.in").replace("lm_head", "out"): tensor for name, tensor in tensors.items()}
    place, ids = write(tmp_path / "theirs", renamed), torch.arange(20)
    with pytest.raises(TreeringError) as error:
        import_checkpoint(place, tmp_path / "ours", "pairs")
    assert "Not known: out.weight, transformer_layers.N.ff.in.weight\n" in str(error.value)
    assert "Not there: lm_head.weight, transformer_layers.N.mlp.0.weight\n" in str(error.value)
    import_checkpoint(place, tmp_path / "ours", "pairs", Names(up="ff.in", head="out"))
    logits = load_model(tmp_path / "ours")(ids[None]).logits[0]
    torch.testing.assert_close(logits, plain_forward(tensors, ids, "pairs"), rtol=1e-4, atol=1e-4)


def test_frequencies_are_left_out_only_if_they_are_those_of_the_architecture(tmp_path):
    name, width = "transformer_layers.0.self_attn.rotary_emb.inv_freq", D // HEADS
    right = 1.0 / (10_000 ** (torch.arange(0, width, 2).float() / width))
    import_checkpoint(write(tmp_path / "a", random_tensors(50) | {name: right}), tmp_path / "ours", "halves")
    with pytest.raises(TreeringError, match="inv_freq"):
        import_checkpoint(write(tmp_path / "b", random_tensors(50) | {name: right * 2}), tmp_path / "o", "halves")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"n_embed": 8}, "8 wide and repeated to the model's 24"),
        ({"n_layer": 3}, r"Not there: .*transformer_layers\.N\.input_layernorm\.weight"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_head": 5}, "each head needs an even, whole width"),
        ({"d_model": "24"}, "d_model"),
        ({"vocab_size": 51}, r"Tensor lm_head\.weight is \[50, 24\]"),
    ],
)
def test_what_differs_is_told(tmp_path, config, told):
    place = write(tmp_path / "theirs", random_tensors(50), **config)
    with pytest.raises(TreeringError, match=told):
        import_checkpoint(place, tmp_path / "ours", "halves")
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    with pytest.raises(TreeringError, match="do not belong together"):
        import_checkpoint(write(tmp_path / "theirs", random_tensors(50), tokenizer), tmp_path / "ours", "halves")


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content",
    [
        {"a": Evil()},
        {"lm_head.weight": torch.zeros(1).expand(2**30)},
        [torch.zeros(3)],
        {"lm_head.weight": 3},
    ],
)
def test_a_pickle_holds_tensors_or_is_refused(tmp_path, capsys, content):
    place = write(tmp_path / "theirs", {"x": torch.zeros(1)})
    (place / "model.safetensors").unlink()
    torch.save(content, place / "pytorch_model.bin")
    with pytest.raises(TreeringError, match=r"pytorch_model\.bin"):
        import_checkpoint(place, tmp_path / "ours", "halves")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_is_not_followed(tmp_path, name):
    place = write(tmp_path / "theirs", random_tensors(50))
    (place / name).rename(tmp_path / "elsewhere")
    (place / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TreeringError, match="is a link"):
        import_checkpoint(place, tmp_path / "ours", "halves")


def test_the_command(tmp_path):
    place = write(tmp_path / "theirs", {n.replace("lm_head", "out"): t for n, t in random_tensors(50).items()})
    (tmp_path / "names.yaml").write_text("head: out\n")
    words = [
        "import",
        str(place),
        "--rotary",
        "pairs",
        "--names",
        str(tmp_path / "names.yaml"),
        "-o",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "no tokenizer.json" in done.output
    assert json.loads((tmp_path / "o" / "config.json").read_text())["architectures"] == ["GPTNeoXForCausalLM"]
    assert CliRunner().invoke(app, ["import", str(place), "-o", str(tmp_path / "p")]).exit_code == 2
