from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig

from treering import backbone
from treering.backbone import PRESETS, UNLIMITED, Preset, context_length, count_parameters, gpt_neox, preset
from treering.errors import TreeringError


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("study-glyph", "247.6", "180.5"),
        ("study-trainable", "247.6", "247.6"),
        ("long-16bit", "269.7", "268.7"),
        ("abs-bvv-1", "1275.1", "738.3"),
        ("abs-bvv-6", "2282.0", "1745.2"),
    ],
)
def test_counts_match_the_paper_to_its_printed_precision(name, total, active):
    count = count_parameters(PRESETS[name])
    assert (f"{count.total / 1e6:.1f}", f"{count.active / 1e6:.1f}") == (total, active)
    assert count.frozen == count.total - count.active


def test_grown_study_differs_from_the_paper_by_the_bias_of_the_head():
    count = count_parameters(PRESETS["study-grown"])
    assert f"{(count.active + 65_536) / 1e6:.1f}" == "105.0"
    assert count.active == 104_899_584


def test_16bit_study_counts_the_code_not_the_expanded_matrix():
    count = count_parameters(PRESETS["study-16bit"])
    assert count.frozen == 65_536 * 16
    assert count.total == 181_525_504


@pytest.mark.parametrize("name", [name for name, shape in PRESETS.items() if shape.paper])
def test_every_preset_rounds_or_cuts_to_the_papers_figure(name):
    total, paper = count_parameters(PRESETS[name]).total, PRESETS[name].paper
    unit = {"M": 1e6, "B": 1e9}[paper[-1]]
    digits = len(paper[:-1].partition(".")[2])
    step = 10.0**-digits
    assert abs(total / unit - float(paper[:-1])) < step


def test_counts_agree_with_a_model_in_memory():
    shape = PRESETS["tiny"]
    model = AutoModelForCausalLM.from_config(gpt_neox(shape))
    count = count_parameters(shape)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.frozen == shape.vocab_size * shape.d_model


def test_the_architecture_is_the_papers():
    config = gpt_neox(PRESETS["best_bvv"])
    assert config.rope_parameters["partial_rotary_factor"] == 1.0
    assert (config.use_parallel_residual, config.hidden_act, config.tie_word_embeddings) == (
        False,
        "gelu",
        False,
    )
    assert (config.intermediate_size, config.max_position_embeddings) == (4096, 1024)


def test_a_configuration_with_older_names_says_the_same(tmp_path):
    """transformers 4.57 took 0.25 where there was no rotary_pct: other logits, and no word of it."""
    config = gpt_neox(PRESETS["tiny"])
    backbone.with_older_names(config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert (said["rotary_pct"], said["rotary_emb_base"]) == (1.0, 10_000.0)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_unknown_preset_lists_the_known():
    with pytest.raises(TreeringError, match=r"no preset 'tny'.*tiny, small"):
        preset("tny")


@pytest.mark.parametrize("heads", [3, 64])
def test_heads_that_do_not_divide_are_refused(heads):
    with pytest.raises(TreeringError, match="each head needs an even, whole width"):
        gpt_neox(replace(PRESETS["tiny"], heads=heads))


def small(model_type, layers, **changes):
    """A family's configuration of few numbers."""
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    return AutoConfig.for_model(model_type, **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2, **changes)


@pytest.mark.parametrize("model_type", list(backbone.FAMILIES))
def test_parts_are_where_the_table_says(model_type):
    config = small(model_type, 3)
    model = AutoModelForCausalLM.from_config(config)
    assert backbone.embedding(model) is model.get_input_embeddings()
    assert backbone.head(model) is model.get_output_embeddings()
    assert len(backbone.blocks(model)) == 3
    hidden = torch.randn(1, 4, 32)
    norm = backbone.attrgetter(backbone.family(config).final_norm)(model)
    assert norm(hidden).shape == hidden.shape


def test_an_unknown_family_is_refused():
    with pytest.raises(TreeringError, match=r"'cohere'.*not supported"):
        backbone.family(AutoConfig.for_model("cohere"))


def test_a_family_that_scales_embeddings_cannot_stand_on_a_substrate(substrate, tokenizer):
    with pytest.raises(TreeringError, match=r"'gemma'.*cannot stand on a substrate.*gpt_neox, llama"):
        backbone.dock(AutoConfig.for_model("gemma"), substrate, tokenizer)


@pytest.mark.parametrize("model_type", list(backbone.FAMILIES))
@torch.no_grad()
def test_a_plain_family_is_embedding_blocks_norm_head_and_no_other_is(model_type):
    """What `Family.plain` and `Family.logits` say, against the model's own forward."""
    config = small(
        model_type,
        1,
        initializer_range=0.3,
        final_logit_softcapping=2.0,
        **({} if model_type == "falcon" else {"head_dim": 16}),  # Falcon's is what the others say of it
        **({"embedding_multiplier": 3.0, "logits_scaling": 2.0} if model_type == "granite" else {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, entered = torch.arange(12).view(1, -1), []
    backbone.blocks(model)[0].register_forward_pre_hook(lambda block, args: entered.append(args[0]))
    out = model(ids, output_hidden_states=True)
    embedded = torch.nn.functional.embedding(ids, backbone.embedding(model).weight)
    head = backbone.head(model)(out.hidden_states[-1])
    finish = backbone.logits_of(model)
    torch.testing.assert_close(finish(head) if finish else head, out.logits)
    assert backbone.family(config).plain == (entered[0].equal(embedded) and head.equal(out.logits))


def test_preset_shape_is_what_the_config_says():
    config = gpt_neox(Preset(3, 64, 2, 500, context=77))
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (3, 64, 500)
    assert config.max_position_embeddings == 77


def test_a_family_without_a_longest_text_has_no_limit():
    assert context_length(BloomConfig()) == UNLIMITED
    assert context_length(gpt_neox(preset("tiny"))) == 128
