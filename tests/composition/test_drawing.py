"""One expert for a whole answer, against the distribution of the composition itself."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treering.composition import compose, draw
from treering.errors import TreeringError

VOCABULARY, END = 5, 2


def small(seed, layers=1, **changes):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.4, **shape | ids | changes)
    return LlamaForCausalLM(config).eval()


def joined(rule, weights=(1.0, 2.0, 1.0)):
    """A base, a branch with a block of its own on it, and a stranger."""
    base, branch, stranger = small(0), small(1, 2), small(2)
    branch.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    branch.model.layers[0].load_state_dict(base.model.layers[0].state_dict())
    records = {name: {"weight": weight} for name, weight in zip("abc", weights, strict=True)}
    model = compose({"a": base, "b": branch, "c": stranger}, rule, records, across_substrates=True)
    assert len(model.tree.trunks) == 1
    return model


@pytest.mark.parametrize(
    ("rule", "prompt"), [("evidence", [1, 3, 3, 0, 4]), ("evidence:switch=0.4", [1, 3, 3, 0, 4]), ("evidence", [1])]
)
def test_answers_are_drawn_as_often_as_the_composition_says(rule, prompt, law, pearson):
    model, samples, length = joined(rule), 800, 2
    expected, alone = law(model, prompt, length, END), cache(model.expert)
    assert sum(expected.values()) == pytest.approx(1)
    torch.manual_seed(0)
    drawn = [
        draw(model, torch.tensor([prompt]), length, alone=alone)[0, len(prompt) :].tolist() for _ in range(samples)
    ]
    counts = Counter(tuple(text) for text in drawn)
    statistic, limit = pearson(counts, expected)
    assert statistic < limit

    def from_the_prior():
        """What would be drawn if the text so far did not count."""
        experts = [law(model.expert(name), prompt, length, END) for name in "abc"]
        return {t: sum(w * e[t] for w, e in zip(model.prior.exp().tolist(), experts, strict=True)) for t in expected}

    if len(prompt) > 1 and rule == "evidence":  # the test tells wrong weights from right ones
        wrong = from_the_prior()
        often = [text for text, probability in expected.items() if probability * samples >= 5]
        assert sum((counts[text] - wrong[text] * samples) ** 2 / (wrong[text] * samples) for text in often) > limit


def test_whole_answers_multiply_out_to_the_mixture(law):
    """The chain rule in the docstring, at every continuation."""
    model, prompt = joined("evidence"), [1, 3, 0, 4]
    with torch.no_grad():
        experts = [model.expert(name)(torch.tensor([prompt])).logits[0].double().log_softmax(-1) for name in "abc"]
    read = torch.stack([e[range(3), prompt[1:]].sum() for e in experts])
    weights = (model.prior.double() + read).softmax(0).tolist()
    alone = [law(model.expert(name), prompt, 3, END) for name in "abc"]
    for text, probability in law(model, prompt, 3, END).items():
        mixed = sum(weight * own[text] for weight, own in zip(weights, alone, strict=True))
        assert probability == pytest.approx(mixed, rel=1e-4)


def test_an_expert_that_is_certain_writes_as_it_does_alone():
    """From the common cache it goes on as from the text itself, whether it stands on a trunk or apart."""
    prompt = torch.tensor([[1, 3, 0, 4, 4, 3]])
    for name, weights in {"b": (1e-30, 1, 1e-30), "c": (1e-30, 1e-30, 1)}.items():
        model = joined("evidence", weights)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "attention_mask": torch.ones_like(prompt)}
        torch.manual_seed(3)
        torch.multinomial(torch.ones(3), 1)  # the draw of the expert
        expected = model.expert(name).generate(prompt, **options)
        torch.manual_seed(3)
        assert torch.equal(draw(model, prompt, 20), expected)


def test_with_switching_the_answer_streams_as_one_and_ends_where_it_should(told):
    model, prompt = joined("evidence:switch=0.5"), torch.tensor([[1, 3]])
    lengths = set()
    for seed in range(8):
        torch.manual_seed(seed)
        heard = told()
        text = draw(model, prompt, 12, heard)[0].tolist()
        assert heard.prompts == [[1, 3]]
        assert (heard.tokens, heard.ends) == (text[2:], 1)
        new = text[2:]
        assert new.count(END) <= 1
        assert len(new) == 12 or new[-1] == END
        lengths.add(len(new))
    assert len(lengths) > 1


def test_what_can_not_be_drawn_is_refused():
    with pytest.raises(TreeringError, match="not by top_k"):
        draw(joined("top_k"), torch.tensor([[1, 3]]), 2)
    with pytest.raises(TreeringError, match="single model"):
        draw(small(0), torch.tensor([[1, 3]]), 2)
