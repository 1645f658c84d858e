"""Continual learning: rows of two corpora by turns, and the penalty that holds what was learnt before."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from workspaces import files, short_rows, two_heads, workspace

from dynamo.data.blocks import TokenBlocks
from dynamo.reproduction import continual, further
from dynamo.training.trainer import Trainer

__all__ = ["files", "short_rows", "workspace"]  # fixtures


def test_rows_alternate_whatever_the_batch(workspace):
    one = TokenBlocks([np.full(400, 7)], 7, 16)
    other = TokenBlocks([np.arange(400) % 200], 0, 16)
    rows = continual.Alternating([one, other])
    whole, labels = rows.batch(0, 6)
    np.testing.assert_array_equal(whole, labels)
    np.testing.assert_array_equal(whole[::2], np.full((3, 16), 7))
    np.testing.assert_array_equal(whole[1::2], other.batch(0, 3)[0])
    np.testing.assert_array_equal(np.concatenate([rows.batch(0, 1)[0], rows.batch(1, 5)[0]]), whole)
    assert rows.fingerprint() != continual.Alternating([other, one]).fingerprint()


def test_elastic_penalty_by_hand():
    model = tiny_dynamo(heads=2)
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    name, weight = next(iter(model.named_parameters()))
    fisher[name].view(-1)[:2] = torch.tensor([2.0, 5.0])
    penalty = continual.elastic_penalty(model, fisher)
    assert penalty(model) == 0
    with torch.no_grad():
        weight.view(-1)[:3] += torch.tensor([3.0, -1.0, 100.0])
    assert penalty(model).item() == pytest.approx((2 * 9 + 5 * 1) / 2, rel=1e-5)


def test_fisher_information_of_one_row_is_its_squared_gradient():
    """Fisher information of one row is its squared gradient times its tokens."""
    model = tiny_dynamo(heads=2)
    rows = TokenBlocks([np.arange(4, 200)], 0, 16)
    fisher = continual.token_fisher(model, rows, 1)
    ids = torch.from_numpy(rows.batch(0, 1)[0])
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids, return_logits=False).loss.backward()
    weight = model.token_heads[0].layers[0].mlp.dense_h_to_4h.weight
    name = "token_heads.0.layers.0.mlp.dense_h_to_4h.weight"
    torch.testing.assert_close(fisher[name], 16 * weight.grad**2, rtol=0.1, atol=1e-6)
    unread = fisher["backbone.gpt_neox.embed_in.weight"][250:]  # no row holds these tokens
    assert torch.count_nonzero(unread) == 0 and fisher[name].sum() > 0


def test_a_penalty_counts_once_however_the_batch_is_divided(workspace, tmp_path):
    """A penalty holds the weights and counts once however the batch is divided."""
    start = two_heads(workspace)
    anchor = {name: weight.detach().clone() for name, weight in start.named_parameters()}

    def drift(name, accumulation, strength):
        def penalty(model):
            squares = [((weight - anchor[key]) ** 2).sum() for key, weight in model.named_parameters()]
            return strength * torch.stack(squares).sum()

        options = further.training_options(workspace, steps=8, accumulation=accumulation, base_lr=1e-3)
        trainer = Trainer(two_heads(workspace), further.blocks(workspace), options, tmp_path / name,
                          penalty=penalty)  # fmt: skip
        model = trainer.run()
        return float(sum(((w - anchor[key]) ** 2).sum() for key, w in model.named_parameters()).detach())

    free, held, divided = drift("free", 1, 0.0), drift("held", 1, 1e3), drift("divided", 2, 1e3)
    assert held < 0.8 * free
    assert divided == pytest.approx(held, rel=0.02)


def test_without_a_second_corpus_continual_learning_is_not_tested(workspace):
    result = continual.CONTINUAL.run(replace(workspace, other=None))
    shown = continual.CONTINUAL.show(result)
    assert shown.finding.verdict == "cannot be tested here" and "--other" in shown.finding.sentence


def test_the_held_out_part_of_the_second_corpus_is_not_trained_on(workspace):
    train, held_out = continual.second_corpus(workspace)
    assert (len(train), len(held_out)) == (38, 3)
    assert not {tuple(each) for each in held_out} & {tuple(each) for each in train}
