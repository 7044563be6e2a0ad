from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from treering.backbone import PRESETS, gpt_neox
from treering.training import loss
from treering.training.loss import IGNORED, Lesson, collate, fused_loss, next_token_loss, taught


def test_equals_cross_entropy_of_the_logits_and_its_gradients():
    torch.manual_seed(0)
    hidden = torch.randn(300, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(97, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 97, (300,))
    labels[::7] = IGNORED
    ours = next_token_loss(hidden, weight, labels)
    gradients = torch.autograd.grad(ours, [hidden, weight])
    kept = labels != IGNORED
    log_probabilities = (hidden @ weight.T).log_softmax(-1)
    reference = -log_probabilities[kept].gather(1, labels[kept, None]).sum()
    expected = torch.autograd.grad(reference, [hidden, weight])
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("at_once", [97 * 7, 2**23])
def test_what_is_done_to_logits_is_part_of_the_loss_and_its_gradients(monkeypatch, at_once):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    weight, bias = torch.randn(97, 16, requires_grad=True), torch.randn(97, requires_grad=True)
    labels = torch.randint(0, 97, (50,))
    labels[::7] = IGNORED

    def cap(logits):
        return 3 * torch.tanh(logits / 3)

    ours = next_token_loss(hidden, weight, labels, bias, cap)
    gradients = torch.autograd.grad(ours, [hidden, weight, bias])
    kept = labels != IGNORED
    reference = -cap(hidden @ weight.T + bias).log_softmax(-1)[kept].gather(1, labels[kept, None]).sum()
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradients, torch.autograd.grad(reference, [hidden, weight, bias]), rtol=1e-4, atol=1e-5)


def test_fused_forward_is_the_models_own_loss_and_is_given_back():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(gpt_neox(PRESETS["tiny"]))
    batch = collate([{"input_ids": torch.randint(0, 1024, (33,))} for _ in range(3)])
    reference = model(**batch).loss
    with fused_loss(model):
        assert "logits" not in model(**batch)
        torch.testing.assert_close(model(**batch).loss, reference)
        torch.testing.assert_close(model(**batch, num_items_in_batch=10).loss, reference * 96 / 10)
    assert model(**batch).logits.shape == (3, 33, 1024)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("at_once", [1024 * 33, 2**23])
def test_a_lesson_is_cross_entropy_to_text_and_teacher_and_counts_only_in_training(monkeypatch, share, at_once):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    model, teacher = (AutoModelForCausalLM.from_config(gpt_neox(PRESETS["tiny"])) for _ in range(2))
    batch = collate([{"input_ids": torch.randint(0, 1024, (33,))} for _ in range(5)])
    batch["labels"][1, 7:] = IGNORED
    kept, ids = batch["labels"][:, 1:] != IGNORED, batch["input_ids"]
    with torch.no_grad():
        said = teacher.eval()(input_ids=ids).logits[:, :-1].softmax(-1)
    own = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    of_text = -own.gather(-1, ids[:, 1:, None])[..., 0][kept].mean()
    of_teacher = -(said * own).sum(-1)[kept].mean()
    expected = (1 - share) * of_text + share * of_teacher
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(expected, parameters, retain_graph=True)
    with fused_loss(model, Lesson(teacher, share)):
        found = model.train()(**batch).loss
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, parameters), gradients, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(model.eval()(**batch).loss, of_text)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_targets_are_distributions_whatever_the_teachers_vocabulary():
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(gpt_neox(PRESETS["tiny"])).eval()
    ids = torch.randint(0, 900, (3, 9))
    labels = ids[:, 1:].clone()
    labels[2] = IGNORED
    sums = taught(ids, labels, Lesson(teacher, 0.3), 900).sum(-1).view(3, 8)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 0.0])[:, None].expand(3, 8))


def test_forward_is_given_back_after_an_error():
    model = AutoModelForCausalLM.from_config(gpt_neox(PRESETS["tiny"]))
    with pytest.raises(ZeroDivisionError), fused_loss(model):
        raise ZeroDivisionError
    assert "forward" not in vars(model)


def test_collate_scores_all_but_the_first_token():
    batch = collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 10]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 10]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, 10]]


@pytest.mark.parametrize(("finish", "share"), [(None, 8), (torch.tanh, 4)])
def test_logits_of_the_whole_batch_never_exist(finish, share):
    """The largest tensor alive is far smaller than positions × vocabulary."""
    hidden, weight = torch.randn(8192, 32, requires_grad=True), torch.randn(16_384, 32, requires_grad=True)
    labels = torch.randint(0, 16_384, (8192,))
    with torch.profiler.profile(profile_memory=True) as profile:
        next_token_loss(hidden, weight, labels, finish=finish).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 8192 * 16_384 * 4 / share
