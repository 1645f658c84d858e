"""The correlator: its formula, its folded evaluation, its losses, and what it leaves alone."""

import math

import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from huggingface_hub.errors import StrictDataclassError

from dynamo.model import DynamoConfig, DynamoForCausalLM, model_shape

IDS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
KINDS = ("mlp", "markov")


def correlated(kind="mlp", heads=3, **more):
    """A tiny model whose correlators are no longer zero."""
    model = tiny_dynamo(heads, correlator_rank=8, correlator_kind=kind, **more)
    torch.manual_seed(3)
    for head in model.token_heads:
        for weight in head.correlator.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return model


def dense_logits(model, head, state, tokens):
    """Logits of one head after `tokens` by the formula, in float64; state: its normed hidden state."""
    correlator = model.token_heads[head - 1].correlator
    h, embedding, output = (
        each.detach().double()
        for each in (state, model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    )
    e = [embedding[token] / (embedding[token] ** 2).mean().sqrt() for token in tokens]
    matrices = [linear.weight.detach().double() for linear in correlator.from_tokens]
    if correlator.from_hidden is None:
        inner = matrices[0] @ e[-1]
    else:
        inner = correlator.from_hidden.weight.detach().double() @ h
        inner = inner + sum(matrix @ each for matrix, each in zip(matrices, e, strict=True))
    return output @ (h + correlator.to_hidden.detach().double() @ (inner * inner.sigmoid()))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_folded_evaluation_equals_the_dense_formula(kind):
    model = correlated(kind)
    candidates = torch.tensor([5, 9, 250, 17])
    output_rows = model.get_output_embeddings().weight[candidates]
    states = model.head_states(IDS)
    for head in (1, 2):
        state, correlator = states[head][0, 7], model.token_heads[head - 1].correlator
        embedding = model.get_input_embeddings().weight
        h_part, out_part = correlator.h_part(state), output_rows @ correlator.to_hidden
        for tokens in ([3, 200], [44, 44]):
            seen = enumerate(tokens[:head])
            inner = h_part + sum(correlator.e_part(place, embedding[token]) for place, token in seen)
            folded = output_rows @ state + out_part @ torch.nn.functional.silu(inner)
            dense = dense_logits(model, head, state, tokens[:head])[candidates]
            torch.testing.assert_close(folded.double(), dense, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_double_loop_over_positions(kind):
    model = correlated(kind)
    labels = IDS.clone()
    labels[0, 5] = labels[1, 20] = -100
    with torch.no_grad():
        output, states = model(IDS, labels=labels), model.head_states(IDS)
    for head in (1, 2):
        terms = []
        for row in range(2):
            for t in range(24 - head - 1):
                target = labels[row, t + head + 1].item()
                if target != -100:
                    tokens = IDS[row, t + 1 : t + head + 1].tolist()
                    log_p = dense_logits(model, head, states[head][row, t], tokens).log_softmax(-1)
                    terms.append(-log_p[target].item())
        expected = math.fsum(terms) / len(terms)
        assert output.correlator_losses[head - 1].item() == pytest.approx(expected, rel=1e-5)
    total = output.head_losses.sum() + output.correlator_losses.sum()
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-6)


def test_an_untrained_correlator_changes_nothing():
    model = tiny_dynamo(correlator_rank=8)
    output = model(IDS, labels=IDS)
    torch.testing.assert_close(output.correlator_losses, output.head_losses[1:])
    assert model.token_heads[0].correlator.from_hidden.weight.abs().min() > 0, "only B is zero"


def test_both_losses_train_the_head_and_only_the_second_its_correlator():
    model = correlated()
    model.freeze_base()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.token_heads.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())
    groups = model.parameter_groups(1e-5, 1e-3)
    assert {group["name"] for group in groups} == {"heads_decay", "heads_no_decay"}


def test_the_input_embedding_gets_no_gradient_from_what_is_told():
    model = correlated()
    embedded = model.get_input_embeddings().weight[IDS]
    state = torch.randn(2, 24, 32)
    assert embedded.requires_grad
    given = model.given_states(2, state, embedded)
    assert given.shape == (2, 22, 32)
    (gradient,) = torch.autograd.grad(given.sum(), embedded, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_saving_and_leaves_the_base_alone(kind, tmp_path):
    model = correlated(kind)
    model.save_pretrained(tmp_path)
    loaded = DynamoForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.correlator_kind == kind
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in loaded.state_dict().items())
    base = loaded.to_base()
    assert torch.equal(base(IDS).logits, tiny_base()(IDS).logits)
    assert "correlator_rank" not in base.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_shape_counts_its_parameters(kind, heads):
    model = tiny_dynamo(heads, correlator_rank=8, correlator_kind=kind)
    assert model_shape(model).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("bad", [{"correlator_rank": -1}, {"correlator_kind": "gru"}])
def test_impossible_correlators_are_refused(bad):
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(bad))):
        DynamoConfig(**bad)
