"""Losses of the heads, the gradients that they send to what is shared, and groups of parameters."""

import math

import pytest
import torch
from conftest import tiny_dynamo

import dynamo  # noqa: F401  (registers the Auto classes)
from dynamo.model import parameter_groups, scale_gradient

IDS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))


def test_loss_equals_a_double_loop_over_positions(dynamo_model):
    labels = IDS.clone()
    labels[0, 5] = labels[1, 20] = -100
    with torch.no_grad():
        output = dynamo_model(IDS, labels=labels)
    log_p = output.head_logits.double().log_softmax(-1)
    for head in range(3):
        terms = []
        for row in range(2):
            for t in range(24 - head - 1):
                target = labels[row, t + head + 1].item()
                if target != -100:
                    terms.append(-log_p[head, row, t, target].item())
        assert output.head_losses[head].item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)
    assert output.loss.item() == pytest.approx(output.head_losses.sum().item(), rel=1e-6)


def test_loss_of_labels_that_leave_nothing_is_zero_not_nan(dynamo_model):
    output = dynamo_model(IDS, labels=torch.full_like(IDS, -100))
    assert output.head_losses.tolist() == [0.0, 0.0, 0.0]


def test_training_leaves_logits_out_unless_asked(dynamo_model):
    model = tiny_dynamo().train()
    assert model(IDS, labels=IDS).logits is None
    assert model(IDS, labels=IDS, return_logits=True).head_logits.shape[0] == 3


def gradients(model, losses):
    model.zero_grad()
    losses.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_shared_parameters_get_a_tenth_of_the_extra_heads_gradient():
    """Two separate backward passes at scale 1 say what one pass at scale 0.1 must give."""
    model = tiny_dynamo(heads=3)

    def loss_of(head):
        state = model.head_states(IDS)[head]
        return model.head_nats(head, state, IDS) / IDS[:, head + 1 :].numel()

    model.config.head_gradient_scale = 1.0
    first = gradients(model, loss_of(0))
    extra = gradients(model, loss_of(1) + loss_of(2))
    model.config.head_gradient_scale = 0.1
    together = gradients(model, model(IDS, labels=IDS).loss)
    assert together.keys() == first.keys() | extra.keys()
    for name, gradient in together.items():
        own = name.startswith("token_heads")
        expected = first.get(name, 0) + (1.0 if own else 0.1) * extra.get(name, 0)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4, msg=name)
    shared = {"backbone.lm_head.weight", "backbone.gpt_neox.final_layer_norm.weight"}
    assert shared <= extra.keys(), "the extra heads do reach the shared norm and output embedding"


def test_scaled_gradient_leaves_the_value_alone():
    x = torch.randn(4, requires_grad=True)
    y = scale_gradient(x, 0.25)
    assert torch.equal(x, y)
    y.sum().backward()
    assert x.grad.tolist() == [0.25] * 4


def test_parameter_groups_partition_and_carry_their_learning_rates(dynamo_model):
    groups = {g["name"]: g for g in dynamo_model.parameter_groups(1e-5, 1e-3, weight_decay=0.1)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "base_decay": (1e-5, 0.1),
        "base_no_decay": (1e-5, 0.0),
        "heads_decay": (1e-3, 0.1),
        "heads_no_decay": (1e-3, 0.0),
    }
    ids = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in dynamo_model.parameters())
    decayed = {id(p) for p in groups["base_decay"]["params"]}
    names = {name for name, p in dynamo_model.backbone.named_parameters() if id(p) in decayed}
    assert names and not [n for n in names if "norm" in n or "bias" in n or "embed" in n or "lm_head" in n]


def test_parameter_in_no_group_or_in_two_is_an_error(dynamo_model):
    with pytest.raises(AssertionError, match="parameter groups hold"):
        parameter_groups({"heads": (dynamo_model.token_heads, 1e-3)}, 0.0, whole=dynamo_model)
    twice = {"a": (dynamo_model, 1e-3), "b": (dynamo_model.token_heads, 1e-3)}
    with pytest.raises(AssertionError, match="parameter groups hold"):
        parameter_groups(twice, 0.0, whole=dynamo_model)


def test_heads_only_training_leaves_the_base_without_gradient():
    model = tiny_dynamo().train()
    model.freeze_base()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.token_heads.parameters())
    assert {group["name"].split("_")[0] for group in model.parameter_groups(1e-5, 1e-3)} == {"heads"}


def test_losses_with_a_cache_are_refused(dynamo_model):
    with pytest.raises(ValueError, match="labels: "):
        dynamo_model(IDS, labels=IDS, use_cache=True)
