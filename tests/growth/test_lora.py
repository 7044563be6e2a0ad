from __future__ import annotations

import pytest
import torch

from treering import backbone
from treering.errors import TreeringError
from treering.growth import Lora
from treering.growth.lora import attach, merge

IDS = torch.arange(24)[None] * 7 % 700


@pytest.mark.parametrize("family", ["llama", "falcon", "mixtral"])
def test_updates_begin_at_nothing_and_their_merge_changes_nothing(foreign, family):
    model, place = foreign(family), f"{backbone.family(foreign(family).config).blocks}.1."
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(IDS).logits
        attached = attach(model, [2], Lora(rank=3))
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all("lora_" in name and place in name for name in trained)
        torch.testing.assert_close(model(IDS).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        changed = model(IDS).logits
        assert (changed - before).abs().max() > 0.01
        merge(attached)
        torch.testing.assert_close(model(IDS).logits, changed, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names


def test_targets_can_be_chosen_and_must_be_there(foreign):
    attach(foreign(), [1, 2], Lora(targets=("q_proj", "down_proj")))
    with pytest.raises(TreeringError, match=r"cannot update query_key_value: a block of llama has .*gate_proj"):
        attach(foreign(), [1], Lora(targets=("query_key_value", "q_proj")))


def test_experts_that_are_no_linear_layers_cannot_be_updated(foreign):
    with pytest.raises(TreeringError, match=r"cannot update down_proj: a block of mixtral has .* k_proj, o_proj"):
        attach(foreign("mixtral"), [1], Lora(targets=("q_proj", "down_proj")))
