"""The loss in pieces against `cross_entropy` on the whole logits, and a loop that may be divided at will."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_dynamo
from trainings import OPTIONS, trainer

from dynamo.model import loss as losses
from dynamo.model.loss import SoftLabels, summed_nats


@pytest.fixture(autouse=True)
def three_rows_at_once(monkeypatch):
    """A vocabulary of 50 would otherwise fit a cache with all its positions."""
    monkeypatch.setattr(losses, "CACHED_LOGITS", 3 * 50)


def example(dtype=torch.float32, positions=37, hidden=16, vocab=50):
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(positions, hidden, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (positions,), generator=generator)
    targets[::5] = -100
    return states, weight, targets


def plainly(states, weight, targets):
    logits = F.linear(states, weight).float()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("piece_logits", [1, 50 * 7, 50 * 37, 10**6])
def test_loss_and_gradients_in_pieces_are_those_of_the_whole(piece_logits):
    states, weight, targets = example()
    expected = plainly(states, weight, targets)
    wanted = torch.autograd.grad(0.3 * expected, (states, weight))
    loss = summed_nats(states, weight, targets, piece_logits)
    got = torch.autograd.grad(0.3 * loss, (states, weight))
    torch.testing.assert_close(loss, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_in_double_precision_are_those_of_finite_differences():
    """An oracle that shares nothing with either implementation; float32 logits limit how fine it can be."""
    states, weight, targets = example(torch.float64, positions=3, hidden=4, vocab=6)
    loss = summed_nats(states, weight, targets, 6)
    gradients = torch.autograd.grad(loss, (states, weight))
    for tensor, gradient in zip((states, weight), gradients, strict=True):
        flat = tensor.detach().view(-1)
        for place in range(0, len(flat), 5):
            values = []
            for shift in (1e-2, -1e-2):
                flat[place] += shift
                values.append(float(plainly(states.detach(), weight.detach(), targets)))
                flat[place] -= shift
            slope = (values[0] - values[1]) / 2e-2
            assert float(gradient.view(-1)[place]) == pytest.approx(slope, abs=2e-3)


def test_frozen_parts_get_no_gradient_and_without_grad_there_is_none():
    states, weight, targets = example()
    summed_nats(states, weight.detach(), targets, 100).backward()
    assert states.grad is not None and weight.grad is None
    states, weight, targets = example()
    summed_nats(states.detach(), weight, targets, 100).backward()
    assert states.grad is None and weight.grad is not None
    with torch.no_grad():
        loss = summed_nats(states, weight, targets, 100)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plainly(states, weight, targets).detach())


def test_nothing_to_score_is_zero_with_zero_gradients():
    states, weight, targets = example()
    loss = summed_nats(states, weight, torch.full_like(targets, -100), 200)
    loss.backward()
    assert loss == 0 and not states.grad.any() and not weight.grad.any()


def test_bf16_autocast_gives_the_gradients_that_autograd_gives():
    states, weight, targets = example()
    results = []
    for loss in (plainly, lambda *all: summed_nats(*all, 50 * 8)):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(states, weight, targets)
        results.append((value, *torch.autograd.grad(value, (states, weight))))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_no_tensor_of_the_vocabularys_size_for_all_positions_is_made():
    """Every allocation is watched: the largest is a piece of logits or the weight, not the whole logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(each, torch.Tensor):
                    self.size = max(self.size, each.numel())
            return result

    states, weight, targets = example(positions=64, hidden=4, vocab=1000)
    with Largest() as watched:
        summed_nats(states, weight, targets, 8 * 1000).backward()
    assert watched.size == 8 * 1000
    with Largest() as watched:
        plainly(states, weight, targets).backward()
    assert watched.size == 64 * 1000


def test_the_models_losses_in_pieces_are_those_of_its_logits():
    model = tiny_dynamo(heads=3, own_output_embedding=True, head_init="copy").train()
    ids = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(1))
    results = []
    for return_logits in (False, True):
        model.zero_grad()
        output = model(ids, labels=ids, return_logits=return_logits)
        output.loss.backward()
        results.append((output.head_losses, {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_parts_of_a_batch_add_up_to_the_batch():
    model = tiny_dynamo(heads=3).train()
    ids = torch.randint(300, (4, 20), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:2, :17] = -100
    whole = model(ids, labels=labels)
    counts = torch.tensor([(labels[:, n:] != -100).sum() for n in (1, 2, 3)])
    parts = [model(ids[i : i + 2], labels=labels[i : i + 2], target_counts=counts) for i in (0, 2)]
    torch.testing.assert_close(parts[0].head_losses + parts[1].head_losses, whole.head_losses)
    means = [model(ids[i : i + 2], labels=labels[i : i + 2]).head_losses for i in (0, 2)]
    assert not torch.allclose(sum(means) / 2, whole.head_losses, rtol=1e-3)


@pytest.mark.parametrize("change", [{"accumulation": 2}, {"activation_checkpointing": True}], ids=str)
def test_a_step_in_parts_or_recomputed_is_the_same_step(documents, tmp_path, change):
    models = []
    for name, options in (("plain", OPTIONS), ("changed", replace(OPTIONS, **change))):
        run = trainer(documents, tmp_path / name, replace(options, steps=1, batch_size=4, warmup=0.0))
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        models.append(run.run().state_dict())
    for name, weight in models[0].items():
        if not name.endswith("query_key_value.bias"):  # keys' biases: their gradient is nothing but rounding
            assert (weight - models[1][name]).abs().mean() < 1e-5, name


def test_a_batch_that_does_not_divide_is_refused(documents, tmp_path):
    with pytest.raises(ValueError, match="batch_size: "):
        trainer(documents, tmp_path, replace(OPTIONS, accumulation=3))


def soft_labels(positions=37, vocab=50, share=0.7):
    generator = torch.Generator().manual_seed(4)
    log_q = (2 * torch.randn(positions, vocab, generator=generator)).log_softmax(-1)
    top, ids = log_q.topk(6)
    return SoftLabels(ids, top, (1 - top.exp().sum(-1)).log(), share)


def softly(states, weight, targets, soft):
    """The same by autograd over whole logits, one position after the other."""
    total = 0.0
    for state, target, ids, log_q, log_rest in zip(states, targets, *soft[:3], strict=True):
        if target == -100:
            continue
        log_p = (weight @ state).log_softmax(-1)
        others = torch.ones(len(weight), dtype=torch.bool)
        others[ids] = False
        cross = -(log_q.exp() * log_p[ids]).sum() - log_rest.exp() * log_p[others].logsumexp(0)
        total = total - (1 - soft.share) * log_p[target] + soft.share * cross
    return total


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("piece_logits", [50 * 7, 10**6])
def test_soft_labels_give_the_loss_and_gradients_of_a_loop(share, piece_logits):
    states, weight, targets = example()
    soft = soft_labels(share=share)
    expected = softly(states, weight, targets, soft)
    loss = summed_nats(states, weight, targets, piece_logits, soft)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    wanted = torch.autograd.grad(expected, (states, weight))
    for one, other in zip(torch.autograd.grad(loss, (states, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("piece_logits", [50 * 7, 10**6])
def test_the_overlaps_term_gives_the_loss_and_gradients_of_whole_distributions(piece_logits):
    states, weight, targets = example()
    soft = soft_labels()._replace(overlap=3.0)
    q = (soft.log_q / 0.7).softmax(-1)
    p = (states @ weight.T / 0.7).softmax(-1).gather(1, soft.ids)
    rejected = (1 - torch.minimum(p, q).sum(-1))[targets != -100].sum()
    assert 5 < rejected < 32
    expected = summed_nats(states, weight, targets, soft=soft._replace(overlap=0.0)) + 3 * rejected
    loss = summed_nats(states, weight, targets, piece_logits, soft)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    wanted = torch.autograd.grad(expected, (states, weight))
    for one, other in zip(torch.autograd.grad(loss, (states, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_soft_labels_of_the_model_itself_leave_no_gradient():
    states, weight, targets = example()
    top, ids = F.linear(states, weight).detach().log_softmax(-1).topk(6)
    soft = SoftLabels(ids, top, (1 - top.exp().sum(-1)).log(), 1.0)
    loss = summed_nats(states, weight, targets, soft=soft)
    for gradient in torch.autograd.grad(loss, (states, weight)):
        assert gradient.abs().max() < 1e-4


def test_a_teacher_that_leaves_nothing_to_others_is_finite():
    states, weight, targets = example()
    ids = torch.arange(37)[:, None] % 50
    soft = SoftLabels(ids, torch.zeros(37, 1), torch.full((37,), -torch.inf), 1.0)
    summed_nats(10 * states, weight, targets, soft=soft).backward()
    assert states.grad.isfinite().all()
