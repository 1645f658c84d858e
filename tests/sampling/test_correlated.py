"""The folded correlator against a dense oracle in float64, and a model with one in every way of decoding."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from engines import PROMPT, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import choose as oracle_choose
from oracle import choose_anchored as oracle_anchored
from sampler_steps import same_decision

from dynamo.decoding.engine import Engine
from dynamo.sampling.anchored import choose_anchored
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.corrections import correction_of
from dynamo.sampling.correlated import Correlators
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context, choose

CORRELATED = SamplingOptions(correction="correlator", threshold=0.2)


def correlated_model(heads=3, kind="mlp", **named):
    """A tiny model whose correlators say something: B is drawn, not zero."""
    model = tiny_dynamo(heads=heads, correlator_rank=12, correlator_kind=kind, **named)
    torch.manual_seed(5)
    for head in model.token_heads:
        torch.nn.init.normal_(head.correlator.to_hidden, std=1.5)
    return model


@cache
def double_model(kind):
    return correlated_model(kind=kind).double()


def dense(weight):
    return weight.detach().double().numpy()


class Dense:
    """p(x_n | tokens before) by the formula, over the whole vocabulary, from the weights alone."""

    def __init__(self, model, states, options):
        self.model, self.states, self.options = model, [dense(each) for each in states], options
        self.out = dense(model.get_output_embeddings().weight)
        embedding = dense(model.get_input_embeddings().weight)
        self.e = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True) + np.finfo(float).eps)

    def __call__(self, tokens):
        correlator, h = self.model.token_heads[len(tokens) - 1].correlator, self.states[len(tokens)]
        inner = dense(correlator.from_hidden.weight) @ h if correlator.from_hidden is not None else 0.0
        seen = tokens[correlator.first_place :]
        for layer, token in zip(correlator.from_tokens, seen, strict=True):
            inner = inner + dense(layer.weight) @ self.e[token]
        corrected = h + dense(correlator.to_hidden) @ (inner / (1 + np.exp(-inner)))
        t = self.options.temperature or 1.0
        own, given = (np.exp((each - each.max()) / t) for each in (self.out @ h, self.out @ corrected))
        ids = np.argsort(-(self.out @ h), kind="stable")[: self.options.top_k]
        return given[ids] / given[ids].sum() * own[ids].sum() / own.sum()


@st.composite
def passes(draw):
    """The heads of a text's last position, in float64, and options."""
    model = double_model(draw(st.sampled_from(["mlp", "mlp", "markov"])))
    text = np.random.default_rng(draw(st.integers(0, 10**6))).integers(0, 300, draw(st.integers(1, 6)))
    with torch.no_grad():
        states = [each[0, -1] for each in model.head_states(torch.from_numpy(text)[None])]
        logits = torch.stack([model.head_logits(n, each) for n, each in enumerate(states)])
    options = SamplingOptions(
        correction="correlator",
        threshold=draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])),
        top_k=draw(st.integers(1, 9)),
        temperature=draw(st.sampled_from([0.0, 0.3, 0.7, 1.7])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.5])),
        adaptive=draw(st.booleans()),
        adaptive_first=draw(st.booleans()),
        max_order=draw(st.integers(2, 3)),
    )
    return model, text, torch.stack(states), logits, options


def attached(model, states, logits, options):
    candidates = top_candidates(logits, options)
    return Correlators.from_model(model).attach(candidates, logits[1:], states[1:], options)


def context_of(text):
    own = Context(300)
    own.add(text)
    return own


@settings(max_examples=60, deadline=None)
@given(passes(), st.floats(0, 0.999))
def test_the_correlators_joint_equals_the_dense_oracle(case, uniform):
    model, text, states, logits, options = case
    ours = choose(attached(model, states, logits, options), context_of(text), None, options, uniform)
    conditional = Dense(model, states, options)
    oracle = oracle_choose(logits, text.tolist(), None, options, uniform, conditional=conditional)
    share = same_decision(ours, oracle)
    if np.abs(np.cumsum(share) - uniform).min() > 1e-7:
        assert ours.tokens == oracle.tokens


@settings(max_examples=60, deadline=None)
@given(passes(), st.lists(st.floats(0, 0.999), min_size=3, max_size=3))
def test_the_correlators_anchored_draw_equals_the_dense_oracle(case, uniforms):
    model, text, states, logits, options = case
    candidates = attached(model, states, logits, options)
    ours = choose_anchored(candidates, context_of(text), None, options, iter(uniforms).__next__)
    oracle = oracle_anchored(
        logits, text.tolist(), None, options, uniforms, conditional=Dense(model, states, options)
    )
    if ours.tokens[:-1] == oracle.tokens[:-1]:
        same_decision(ours, oracle)


@settings(max_examples=25, deadline=None)
@given(passes())
def test_what_is_shown_of_a_correlators_joint_is_the_joint(case):
    """Grid, third tokens and best cell are those of all cells, though only the largest are listed."""
    model, _, states, logits, options = case
    correction = correction_of(attached(model, states, logits, options), options.max_order, None, options)
    shown = pickle.loads(pickle.dumps(correction.recorded_joint()))
    cells, values, _ = correction.cells(0.0)
    order, k = correction.ids.shape
    grid = np.zeros(k**order)
    grid[cells] = values
    grid = grid.reshape((k,) * order)
    assert shown.correction == "correlator"
    assert shown.best == (pytest.approx(grid.max()) if grid.max() > shown.floor else 0)
    pairs = grid.sum(axis=2) if order == 3 else grid
    np.testing.assert_allclose(shown.grid(k), pairs, rtol=1e-9)
    assert len(shown.values) == (values > shown.floor).sum()
    if order == 3:
        first, second = np.unravel_index(pairs.argmax(), pairs.shape)
        for token, share in shown.third(int(first), int(second)):
            rank = int(np.flatnonzero(correction.ids[2] == token)[0])
            assert share == pytest.approx(grid[first, second, rank] / pairs[first, second])


def test_an_untrained_correlator_changes_nothing():
    """B is zero at first; with all tokens as candidates their share is 1."""
    model = tiny_dynamo(correlator_rank=8)
    options = SamplingOptions(top_k=300, threshold=0.0, max_order=2, temperature=0.3)
    plain, given = (
        tokens_of(Engine(model).stream(PROMPT, replace(options, correction=each), 24, seed=2))
        for each in ("none", "correlator")
    )
    assert plain == given


@pytest.mark.parametrize("changes", [{}, {"draw": "anchored"}, {"exact": True}], ids=str)
def test_a_batch_decodes_with_the_correlator_as_streams_alone_do(changes):
    model = correlated_model()
    engine, options = Engine(model), replace(CORRELATED, **changes)
    prompts = [PROMPT, PROMPT[:2], [7, 7, 7, 200]]
    alone = [tokens_of(engine.stream(prompt, options, 20, seed)) for seed, prompt in enumerate(prompts)]
    together = [[], [], []]
    for row, step in engine.stream_batch(prompts, options, 20):
        together[row] += step.tokens
    assert together == alone
    assert any(len(step.tokens) > 1 for step in engine.stream(PROMPT, options, 40)) or options.exact


def test_chunks_depend_on_the_correlator_and_single_tokens_do_not():
    model, options = correlated_model(), replace(CORRELATED, threshold=0.0)
    texts = {
        correction: tokens_of(Engine(model).stream(PROMPT, replace(options, correction=correction), 30))
        for correction in ("none", "correlator")
    }
    assert texts["none"] != texts["correlator"]
    single = replace(options, threshold=1.0)
    base = tokens_of(Engine(model.to_base()).stream(PROMPT, SamplingOptions(threshold=1.0), 30))
    assert tokens_of(Engine(model).stream(PROMPT, single, 30)) == base


def test_a_correlator_asked_of_a_checkpoint_without_one_is_refused():
    with pytest.raises(ValueError, match=r"^correction: "):
        Engine(tiny_dynamo()).stream(PROMPT, CORRELATED)
    assert tokens_of(Engine(tiny_dynamo().to_base()).stream(PROMPT, CORRELATED, 5))  # a base needs none


def test_a_head_with_an_output_embedding_of_its_own_is_corrected_by_that():
    model = correlated_model(own_output_embedding=True, own_final_norm=True)
    steps = list(Engine(model).stream(PROMPT, replace(CORRELATED, threshold=0.0), 12))
    with torch.no_grad():
        states = [each[0, -1] for each in model.head_states(torch.tensor([PROMPT]))]
    joint, first = steps[0].joint, int(steps[0].tokens[0])
    rank = int(np.flatnonzero(joint.candidates[0] == first)[0])
    correlator, head = model.token_heads[0].correlator, model.token_heads[0]
    with torch.no_grad():
        given = correlator(states[1], [model.get_input_embeddings()(torch.tensor(first))])
        logits = head.output_embedding(given)[torch.from_numpy(joint.candidates[1])] / 0.7
    np.testing.assert_allclose(
        joint.given[rank] / joint.given[rank].sum(), logits.softmax(-1).numpy(), rtol=1e-3
    )


@pytest.mark.parametrize("kind", ["mlp", "markov"])
@pytest.mark.parametrize("half", [True, False])
def test_copies_give_what_the_models_own_weights_give(kind, half):
    model = correlated_model(kind=kind)
    with torch.no_grad():
        for weight in model.token_heads.parameters():
            weight.copy_(weight.half() if half else weight + 2**-20)
        states = torch.stack([each[0, -1] for each in model.head_states(torch.arange(5)[None])])
        logits = torch.stack([model.head_logits(n, each) for n, each in enumerate(states)])
    candidates = top_candidates(logits, CORRELATED)
    copied, own = (
        Correlators.from_model(model, copied=each)
        .attach(candidates, logits[1:], states[1:], CORRELATED)
        .given
        for each in (True, False)
    )
    few, many = [[7], [9]], [[token] for token in range(20)]
    for chunks in (few, many, [[7, 9], [9, 9]]):
        found, expected = (each.factors(np.array(chunks)) for each in (copied, own))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
