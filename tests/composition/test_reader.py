"""What experts say of a long prompt, of which the logits never exist at once."""

from __future__ import annotations

import pytest
import torch

from treering import load_model
from treering.composition import reader


@pytest.mark.parametrize(("at_once", "weighed"), [(2**21, 2**18), (2**21, 1), (7_000, 1_500), (1, 1)])
def test_a_prompt_weighed_in_parts_is_weighed_as_a_whole(pair, monkeypatch, at_once, weighed):
    monkeypatch.setattr(reader, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(reader, "WEIGHED_AT_ONCE", weighed)
    model = load_model(pair).use("evidence")
    prompt = torch.randint(model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, reading = model.read(prompt)
        whole = model.rule(logits, reading)
        last = model(prompt, logits_to_keep=1, use_cache=True)
    noted = last.past_key_values.layers[0].weights
    torch.testing.assert_close(noted.exp(), whole.evidence.exp(), rtol=0, atol=1e-6)
    torch.testing.assert_close(last.logits[:, 0], whole.logits[:, -1], rtol=0, atol=2e-5)
