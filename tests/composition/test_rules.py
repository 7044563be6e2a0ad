from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from treering.composition import RULES, Reading, rule
from treering.composition.pools import linear_pool
from treering.composition.posterior import LONG, most_credible, posterior
from treering.composition.rules import adapter_start, gate_start
from treering.composition.together import RATE, SHARPEN

SPECS = [
    *RULES,
    "weighted:pool=log",
    "evidence:switch=0.1",
    "evidence:switch=0.1,together=0.2",
    "top_k:k=2",
    "gate:pool=log,switch=0.1",
]
shapes = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 6), st.integers(2, 7))
seeds = st.integers(0, 2**16)
switches = st.sampled_from([0.0, 0.001, 0.1, 0.9])
D = 3


def world(shape, seed):
    """Random experts that read a random text: logits, and all that a rule may ask, in float64."""
    experts, batch, length, vocab = shape
    generator = torch.Generator().manual_seed(seed)
    random = {"generator": generator, "dtype": torch.float64}
    logits = torch.randn(shape, **random) * 3
    tokens = torch.randint(vocab, (batch, length), generator=generator)
    said = logits.log_softmax(-1)[:, :, :-1].gather(-1, tokens[None, :, 1:, None].expand(experts, -1, -1, 1))[..., 0]
    reading = Reading(
        prior=torch.randn(experts, **random).log_softmax(0),
        likelihood=torch.cat([torch.zeros(experts, batch, 1, dtype=torch.float64), said], -1),
        hidden=torch.randn(batch, length, experts * D, **random),
        fusion={
            "gate": torch.randn(experts, experts * (D + 1) + 1, **random),
            "adapter": torch.randn(vocab, experts * D, **random),
        },
        tokens=tokens,
        said=lambda part: logits[:, :, part],
    )
    return logits, reading, tokens


def permuted(logits, reading, order):
    """The same experts in another order."""
    experts = len(order)
    columns = [e * D + d for e in order for d in range(D)]
    gate = reading.fusion["gate"][order][:, [*columns, *(experts * D + e for e in order), experts * (D + 1)]]
    return logits[order], Reading(
        said=lambda part: logits[order][:, :, part],
        prior=reading.prior[order],
        likelihood=reading.likelihood[order],
        hidden=reading.hidden[..., columns],
        fusion={"gate": gate, "adapter": reading.fusion["adapter"][:, columns]},
    )


def surprise(log_probabilities, tokens):
    """Nats that a text [position] costs after its first token, under [position, vocab]."""
    return -log_probabilities[:-1].gather(-1, tokens[1:, None]).sum().item()


@pytest.mark.parametrize("spec", SPECS)
@given(shapes, seeds)
def test_rules_return_distributions_and_weights(spec, shape, seed):
    logits, reading, _ = world(shape, seed)
    joined = rule(spec)(logits, reading)
    assert joined.logits.shape == shape[1:]
    assert joined.weights.shape == shape[:3]
    ones = torch.ones(shape[1:3], dtype=torch.float64)
    torch.testing.assert_close(joined.logits.softmax(-1).sum(-1), ones)
    torch.testing.assert_close(joined.weights.exp().sum(0), ones)


@pytest.mark.parametrize("spec", SPECS)
@given(shapes, seeds, st.data())
def test_rules_do_not_care_for_the_order_of_experts(spec, shape, seed, data):
    logits, reading, _ = world(shape, seed)
    order = data.draw(st.permutations(range(shape[0])))
    joined, again = rule(spec)(logits, reading), rule(spec)(*permuted(logits, reading, order))
    torch.testing.assert_close(joined.logits.softmax(-1), again.logits.softmax(-1))
    torch.testing.assert_close(joined.weights.exp()[order], again.weights.exp())


SHARPENING = ("adapter", "gate:pool=log,switch=0.1", "evidence:switch=0.1,together=0.2")


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in SHARPENING])
@given(shapes, seeds)
def test_one_expert_joined_with_itself_is_itself(spec, shape, seed):
    logits, reading, _ = world(shape, seed)
    same = Reading(reading.prior, reading.likelihood[:1].expand(shape[:3]), None, reading.hidden, reading.fusion)
    joined = rule(spec)(logits[:1].expand(shape), same)
    torch.testing.assert_close(joined.logits.softmax(-1), logits[0].softmax(-1))


@given(shapes, seeds)
def test_mean_is_the_normalised_geometric_mean_of_the_distributions(shape, seed):
    logits, reading, _ = world(shape, seed)
    product = torch.ones(shape[1:], dtype=torch.float64)
    for expert in logits:
        product *= expert.softmax(-1) ** (1 / shape[0])
    joined = rule("mean")(logits, reading).logits.softmax(-1)
    torch.testing.assert_close(joined, product / product.sum(-1, keepdim=True))


@given(shapes, seeds)
def test_pools_in_closed_form(shape, seed):
    logits, reading, _ = world(shape, seed)
    p, w = logits.softmax(-1), reading.prior.exp()[:, None, None, None]
    torch.testing.assert_close(rule("probability")(logits, reading).logits.softmax(-1), p.mean(0))
    torch.testing.assert_close(rule("weighted")(logits, reading).logits.softmax(-1), (w * p).sum(0))
    product = (p**w).prod(0)
    product /= product.sum(-1, keepdim=True)
    torch.testing.assert_close(rule("weighted:pool=log")(logits, reading).logits.softmax(-1), product)


@given(shapes, seeds)
def test_evidence_is_bayes_theorem(shape, seed):
    logits, reading, _ = world(shape, seed)
    joint = reading.prior.exp()[:, None, None] * reading.likelihood.exp().cumprod(-1)
    joined = rule("evidence")(logits, reading)
    torch.testing.assert_close(joined.weights.exp(), joint / joint.sum(0))


@given(shapes, seeds)
def test_evidence_loses_at_most_the_log_of_one_over_the_prior(shape, seed):
    logits, reading, tokens = world(shape, seed)
    joined = rule("evidence")(logits, reading).logits
    for row in range(shape[1]):
        loss = surprise(joined[row].log_softmax(-1), tokens[row])
        for expert, log_prior in zip(logits, reading.prior, strict=True):
            assert loss <= surprise(expert[row].log_softmax(-1), tokens[row]) - log_prior.item() + 1e-9


@given(shapes, seeds, st.sampled_from([0.001, 0.1, 0.9]), st.data())
def test_fixed_share_keeps_its_bound_against_any_sequence_of_experts(shape, seed, switch, data):
    logits, reading, tokens = world(shape, seed)
    joined = rule(f"evidence:switch={switch}")(logits, reading).logits
    steps = shape[2] - 1
    sequence = data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=steps, max_size=steps))
    for row in range(shape[1] if steps else 0):
        theirs = sum(-logits[e, row, t].log_softmax(-1)[tokens[row, t + 1]].item() for t, e in enumerate(sequence))
        bound = -reading.prior[sequence[0]].item()
        for old, new in itertools.pairwise(sequence):
            bound -= math.log(switch) + reading.prior[new].item() if old != new else math.log(1 - switch)
        assert surprise(joined[row].log_softmax(-1), tokens[row]) <= theirs + bound + 1e-9


@given(shapes, seeds, switches, st.sampled_from([0.01, 0.2, 0.9]))
def test_a_cache_costs_at_most_what_it_says(shape, seed, switch, share):
    logits, reading, tokens = world(shape, seed)
    plain, cached = (rule(f"evidence:switch={switch}{more}")(logits, reading) for more in ("", f",cache={share}"))
    bound = -math.log(1 - share) - (shape[2] - 2) * math.log(1 - share**2)
    for row in range(shape[1] if shape[2] > 1 else 0):
        without = surprise(plain.logits[row].log_softmax(-1), tokens[row])
        assert surprise(cached.logits[row].log_softmax(-1), tokens[row]) <= without + bound + 1e-5
    ones = torch.ones(shape[1:3], dtype=torch.float64)
    torch.testing.assert_close(cached.weights.exp().sum(0), ones)
    torch.testing.assert_close(cached.logits.softmax(-1).sum(-1), ones)
    assert cached.evidence.shape[0] == shape[0] + 2


@given(shapes, seeds, switches, st.sampled_from([0.01, 0.2, 0.9]))
def test_speaking_together_costs_at_most_what_it_says(shape, seed, switch, share):
    logits, reading, tokens = world(shape, seed)
    plain, both = (rule(f"evidence:switch={switch}{more}")(logits, reading) for more in ("", f",together={share}"))
    bound = math.log(2) - (shape[2] - 2) * math.log(1 - share / 2)
    for row in range(shape[1] if shape[2] > 1 else 0):
        without = surprise(plain.logits[row].log_softmax(-1), tokens[row])
        assert surprise(both.logits[row].log_softmax(-1), tokens[row]) <= without + bound + 1e-9
    torch.testing.assert_close(both.weights.exp().sum(0), torch.ones(shape[1:3], dtype=torch.float64))
    assert both.evidence.shape[0] == 2 * shape[0] + 3


@given(shapes, seeds, switches, st.sampled_from([0.01, 0.2]))
def test_together_is_the_mixture_mixed_with_the_sharpened_product(shape, seed, switch, share):
    """Token by token, in plain numbers."""
    logits, reading, tokens = world(shape, seed)
    found = rule(f"evidence:switch={switch},together={share}")(logits, reading)
    prior, said = reading.prior.exp(), logits.softmax(-1)
    for row in range(shape[1]):
        fast, slow, sources = prior, prior, torch.tensor([0.5, 0.5], dtype=torch.float64)
        mixture = product = torch.zeros(shape[3])
        for at in range(shape[2]):
            if at:
                own = said[:, row, at - 1, tokens[row, at]]
                told = torch.stack([mixture[tokens[row, at]], product[tokens[row, at]]])
                fast, slow = fast * own / (fast @ own), slow * own**RATE / (slow @ own**RATE)
                fast, slow = (1 - switch) * fast + switch * prior, (1 - share) * slow + share * prior
                sources = (1 - share) * sources * told / (sources @ told) + share / 2
            mixture = fast @ said[:, row, at]
            exponents = slow * (slow**2).sum() ** -SHARPEN
            product = (said[:, row, at] ** exponents[:, None]).prod(0)
            product = product / product.sum()
            torch.testing.assert_close(
                found.logits[row, at].softmax(-1), sources[0] * mixture + sources[1] * product, rtol=1e-8, atol=1e-12
            )
            torch.testing.assert_close(found.weights[:, row, at].exp(), sources[0] * fast + sources[1] * slow)


def test_experts_that_rule_each_other_out_speak_by_the_mixture_alone():
    never = -math.inf
    logits = torch.tensor([[0.0, 0.0, never, never], [never, never, 0.0, 1.0]], dtype=torch.float64)
    logits = logits[:, None, None].expand(2, 1, 3, 4)
    said = torch.tensor([[[0.0, math.log(0.5), never]], [[0.0, never, never]]], dtype=torch.float64)
    reading = Reading(torch.tensor([0.5, 0.5]).double().log(), said, said=lambda part: logits[:, :, part])
    plain, both = (rule(f"evidence:switch=0.1{more}")(logits, reading) for more in ("", ",together=0.1"))
    torch.testing.assert_close(both.logits.softmax(-1), plain.logits.softmax(-1))
    assert both.evidence[-2:].isfinite().all()


@given(shapes, seeds, st.integers(1, 5), st.sampled_from(["cache=0.2", "together=0.2", "together=0.1,cache=0.2"]))
def test_what_is_beside_evidence_goes_on_from_its_state(shape, seed, at, beside):
    logits, reading, tokens = world(shape, seed)
    joining, at = rule(f"evidence:switch=0.1,{beside}"), min(at, shape[2] - 1)
    whole = joining(logits, reading)
    state = None
    for part in (slice(0, at), slice(at, None)) if at else ():
        own = replace(reading, likelihood=reading.likelihood[..., part], state=state, tokens=tokens[:, : part.stop])
        own = replace(own, said=lambda some, own=logits[:, :, part]: own[:, :, some])
        joined = joining(logits[:, :, part], own)
        state = joined.evidence[..., -1]
        torch.testing.assert_close(joined.logits.softmax(-1), whole.logits[:, part].softmax(-1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(joined.evidence, whole.evidence[..., part], rtol=1e-5, atol=1e-5)


@given(shapes, seeds, switches)
def test_fixed_share_is_the_hidden_markov_model_it_says(shape, seed, switch):
    """Brute force: the posterior of the expert after a text, summed over every sequence of experts."""
    _, reading, _ = world((min(shape[0], 3), 1, min(shape[2], 4), shape[3]), seed)
    prior, seen = reading.prior.exp().tolist(), reading.likelihood[:, 0].exp().tolist()
    track = posterior(reading.likelihood, reading.prior, switch=switch)[:, 0, -1].exp()
    steps, after = len(seen[0]), [0.0] * len(prior)
    for path in itertools.product(range(len(prior)), repeat=steps + 1):
        weight = prior[path[0]] * math.prod(seen[e][t] for t, e in enumerate(path[:-1]))
        for old, new in itertools.pairwise(path):
            weight *= switch * prior[new] + (1 - switch) * (old == new)
        after[path[-1]] += weight
    torch.testing.assert_close(track, torch.tensor(after, dtype=torch.float64) / sum(after))


@given(shapes, seeds, switches, st.integers(1, 5))
def test_the_posterior_goes_on_from_its_state(shape, seed, switch, at):
    _, reading, _ = world(shape, seed)
    whole = posterior(reading.likelihood, reading.prior, switch=switch)
    at = min(at, shape[2])
    first = posterior(reading.likelihood[..., :at], reading.prior, switch=switch)
    if at < shape[2]:
        second = posterior(reading.likelihood[..., at:], reading.prior, first[..., -1], switch)
        torch.testing.assert_close(torch.cat([first, second], -1), whole)
    torch.testing.assert_close(first, whole[..., :at])


@given(shapes, seeds, st.integers(1, 5))
def test_top_k_is_the_evidence_of_the_k_best(shape, seed, k):
    logits, reading, _ = world(shape, seed)
    evidence = rule("evidence")(logits, reading).weights.exp()
    weights = rule(f"top_k:k={k}")(logits, reading).weights.exp()
    assert (most_credible(evidence, k).sum(0) >= min(k, shape[0])).all()
    expected = torch.where(most_credible(evidence, k), evidence, 0)
    torch.testing.assert_close(weights, expected / expected.sum(0))


@given(shapes, seeds)
def test_gate_starts_at_evidence_and_adapter_at_mean(shape, seed):
    logits, reading, _ = world(shape, seed)
    experts, vocab = shape[0], shape[3]
    heads = torch.randn(experts, vocab, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reading.fusion["gate"] = gate_start(experts, experts * D).double()
    reading.fusion["adapter"] = adapter_start(list(heads))
    for gate, evidence in (("gate", "evidence"), ("gate:switch=0.1", "evidence:switch=0.1")):
        one, other = rule(gate)(logits, reading), rule(evidence)(logits, reading)
        torch.testing.assert_close(one.logits, other.logits)
        torch.testing.assert_close(one.evidence, other.evidence)
    log = rule("gate:pool=log,switch=0.1")(logits, reading)
    product = (logits.log_softmax(-1) * log.weights[..., None].exp()).sum(0).softmax(-1)
    torch.testing.assert_close(log.weights, rule("evidence:switch=0.1")(logits, reading).weights)
    torch.testing.assert_close(log.logits.softmax(-1), product)
    own = torch.stack([reading.hidden[..., e * D : (e + 1) * D] @ heads[e].T for e in range(experts)])
    torch.testing.assert_close(rule("adapter")(logits, reading).logits, rule("mean")(own, reading).logits)


def test_an_expert_ruled_out_stays_out():
    logits, reading, _ = world((3, 1, 4, 5), 0)
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    fusion = {"gate": gate_start(3, 3 * D).double()}
    out = Reading(prior, reading.likelihood, None, reading.hidden, fusion)
    without = Reading(prior[:2], reading.likelihood[:2], None, reading.hidden, fusion)
    for spec in ("evidence", "evidence:switch=0.1", "gate"):
        assert rule(spec)(logits, out).weights[2].exp().eq(0).all()
    for spec in ("weighted", "evidence", "evidence:switch=0.1", "top_k:k=2"):
        torch.testing.assert_close(rule(spec)(logits, out).logits, rule(spec)(logits[:2], without).logits)


@given(seeds, switches)
def test_long_evidence_is_summed_precisely_in_any_precision(seed, switch):
    generator = torch.Generator().manual_seed(seed)
    said = -9 - torch.rand(3, 1, 400 if switch else 20_000, generator=generator)
    prior = torch.tensor([0.2, 0.3, 0.5]).log()
    single = posterior(said, prior, switch=switch)
    double = posterior(said.double(), prior.double(), switch=switch)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.exp(), double.exp().float(), rtol=1e-5, atol=1e-7)


@given(seeds, st.integers(1, 4), st.sampled_from([1e-9, 0.01, 0.9]), st.sampled_from([0.0, 0.3]), st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_long_text_is_weighed_as_one_token_after_the_other(seed, experts, switch, zeros, stranger):
    """Also with tokens that some or all hold impossible, an expert of no weight, and one that only the state knows."""
    random = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    said = torch.rand(experts, 2, LONG + 70, **random).mul(-30)
    said[torch.rand(said.shape, **random) < zeros] = -math.inf
    prior, state = torch.randn(experts, **random), torch.randn(experts, 2, **random).log_softmax(0)
    if experts > 1:
        prior[0] = -math.inf
        state[0] = state[0] if stranger else -math.inf
    prior = prior.log_softmax(0)
    whole, before = posterior(said, prior, state, switch), state
    for at, token in enumerate(said.split(1, -1)):
        before = posterior(token, prior, before, switch)[..., 0]
        torch.testing.assert_close(whole[..., at], before, rtol=1e-12, atol=1e-9)


def test_a_long_text_takes_far_fewer_operations_than_it_has_tokens():
    class Counter(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.made += 1
            return operation(*args, **(kwargs or {}))

    with Counter() as counter:
        posterior(torch.zeros(2, 1, 8192), torch.full((2,), 0.5).log(), switch=0.01)
    assert counter.made < 8192 / 2


def impossible(*columns):
    """Log-probabilities [expert, 1, position] of which some are −inf, from those of each position."""
    return torch.tensor(columns, dtype=torch.float64).log().T[:, None]


@pytest.mark.parametrize("switch", [0.0, 0.1])
def test_a_token_that_nobody_foresaw_leaves_the_weights_as_they_were(switch):
    prior = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    without = posterior(impossible((0.2, 0.6), (0.3, 0.1)), prior)
    track = posterior(impossible((0.2, 0.6), (0.0, 0.0), (0.3, 0.1)), prior)
    torch.testing.assert_close(track[..., [0, 2]], without)
    torch.testing.assert_close(track[..., 1], track[..., 0])
    shared = posterior(impossible((0.2, 0.6), (0.0, 0.0)), prior, switch=switch).exp()[:, 0]
    torch.testing.assert_close(shared[:, 1], (1 - switch) * shared[:, 0] + switch * prior.exp())


def test_an_expert_that_was_wrong_once_is_out_and_the_rest_decide_alone():
    prior = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    track = posterior(impossible((0.0, 0.6, 0.2), (0.9, 0.1, 0.3)), prior)
    assert track[0].isneginf().all()
    rest = posterior(impossible((0.6, 0.2), (0.1, 0.3)), prior[:2] - prior[:2].logsumexp(0))
    torch.testing.assert_close(track[1:], rest)
    nobody_left = posterior(impossible((0.0, 0.6, 0.2), (0.9, 0.0, 0.0)), prior)
    torch.testing.assert_close(nobody_left[..., 1], nobody_left[..., 0])
    back = posterior(impossible((0.0, 0.6, 0.2)), prior, switch=0.1)[0, 0, 0].exp().item()
    assert back == pytest.approx(0.1 / 3)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "adapter"])
def test_probabilities_of_zero_never_make_a_rule_undefined(spec):
    logits, reading, _ = world((3, 1, 6, 5), 3)
    logits[:, :, :, 0] = -math.inf  # what no expert can imagine
    logits[0, :, :, 1] = -math.inf
    reading.likelihood[:, 0, 2] = -math.inf
    reading.likelihood[0, 0, 3] = -math.inf
    joined = rule(spec)(logits, reading)
    assert not joined.logits.isnan().any()
    assert not joined.weights.isnan().any()
    assert joined.logits.softmax(-1)[..., 0].eq(0).all()
    torch.testing.assert_close(joined.logits.softmax(-1).sum(-1), torch.ones(1, 6, dtype=torch.float64))


def test_a_mixture_sure_of_an_expert_gives_its_logits_bit_for_bit():
    logits = torch.randn(2, 1, 4, 9, generator=torch.Generator().manual_seed(0))
    sure = torch.tensor([0.0, -80.0])[:, None, None].expand(2, 1, 4)
    assert linear_pool(logits, sure).equal(logits[0])
