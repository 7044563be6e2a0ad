from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treering.composition import RULES, rule
from treering.errors import TreeringError

shapes = st.tuples(st.integers(2, 4), st.integers(1, 2), st.integers(1, 3), st.integers(2, 7))


def random_logits(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@given(shapes, st.integers(0, 2**16))
def test_mean_is_the_normalised_geometric_mean_of_the_distributions(shape, seed):
    logits = random_logits(shape, seed)
    product = torch.ones(shape[1:], dtype=torch.float64)
    for expert in logits:
        product *= expert.softmax(-1) ** (1 / shape[0])
    torch.testing.assert_close(rule("mean")(logits).softmax(-1), product / product.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", RULES)
@given(shapes, st.integers(0, 2**16), st.data())
def test_rules_do_not_care_for_the_order_of_experts(name, shape, seed, data):
    logits = random_logits(shape, seed)
    order = data.draw(st.permutations(range(shape[0])))
    joined, again = rule(name)(logits), rule(name)(logits[list(order)])
    torch.testing.assert_close(joined.softmax(-1), again.softmax(-1))


@pytest.mark.parametrize("name", RULES)
@given(shapes, st.integers(0, 2**16))
def test_one_expert_joined_with_itself_is_itself(name, shape, seed):
    one = random_logits(shape, seed)[:1]
    torch.testing.assert_close(rule(name)(one.expand(shape)).softmax(-1), one[0].softmax(-1))


def test_unknown_rule_lists_the_known():
    with pytest.raises(TreeringError, match=r"no composition rule 'median'.*mean"):
        rule("median")
