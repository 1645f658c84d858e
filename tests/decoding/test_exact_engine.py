"""Exact mode on tiny models: the one-token loop's texts, a cache that drafts are taken back from, stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_dynamo
from engines import PROMPT, tokens_of
from tables import random_table

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data.text import IncrementalDecoder
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.engine import Engine
from dynamo.sampling.options import SamplingOptions


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("exact_threshold", [0.0, 0.05])
@pytest.mark.parametrize("exact_vocabulary", [0, 200])
def test_greedy_exact_mode_is_the_greedy_one_token_loop(seed, penalty, exact_threshold, exact_vocabulary):
    """A table of the model's own greedy text, so that drafts are often right."""
    model = tiny_dynamo(seed=seed, head_init="copy")
    model.count_tokens(torch.arange(150, 300))
    options = SamplingOptions(temperature=0, repetition_penalty=penalty, top_k=20)
    alone = tokens_of(Engine(model.to_pythia()).stream(PROMPT, options, 80))
    table = CooccurrenceTable.count([PROMPT + alone] * 3, vocab_size=300)
    drafted = {"exact_threshold": exact_threshold, "exact_vocabulary": exact_vocabulary}
    exact = replace(options, exact=True, **drafted)
    steps = list(Engine(model, table).stream(PROMPT, exact, 80))
    assert tokens_of(steps) == alone
    if exact_threshold == 0 and len(alone) > 40:
        assert any(len(step.tokens) > 1 for step in steps) and any(step.rejected for step in steps)
    if exact_vocabulary:
        listed = {*range(150, 300), *range(exact_vocabulary - 150)}
        assert listed.issuperset(token for step in steps for token in step.drafted)


@pytest.mark.parametrize("shape", [{}, {"own_output_embedding": True}], ids=str)
@pytest.mark.parametrize("weights", ["own", "int8"])
def test_logits_made_when_asked_for_are_those_of_all(shape, weights):
    model = tiny_dynamo(**shape)
    model.count_tokens(torch.randint(300, (999,), generator=torch.Generator().manual_seed(0)))
    decoder = Decoder(model, packed=True, weights=weights)
    states = decoder.read(decoder.new_cache(64), list(PROMPT), queries=3)
    some, all_ = decoder.by_position(states), decoder.logits(states).transpose(0, 1)  # (3, heads, vocab)
    other, few = decoder.drafted(24), decoder.drafted(40)
    assert few.tolist() == model.tokens_by_frequency[:40].tolist()
    for asked in (1, (slice(None), 0), (2, slice(1, 3), few), (1, slice(1, 3), other), (0, slice(1, 2))):
        torch.testing.assert_close(some[asked], all_[asked])


def test_nothing_is_set_apart_where_it_would_save_nothing(monkeypatch):
    model = tiny_dynamo()
    assert Decoder(model, packed=False).drafted(40) is None
    decoder = Decoder(model)
    assert decoder.drafted(0) is decoder.drafted(300) is None and len(decoder.drafted(299)) == 299
    monkeypatch.setattr(Decoder, "drafted", lambda *_: pytest.fail("no drafts are made here"))
    few = SamplingOptions(exact_vocabulary=40, correction="none")
    for engine, options in ((Engine(model.to_base()), replace(few, exact=True)), (Engine(model), few)):
        assert tokens_of(engine.stream(PROMPT, options, 5))


def test_a_stock_model_or_no_draft_gives_the_base_loop_from_the_same_seed():
    model = tiny_dynamo()
    options = SamplingOptions(temperature=1.2)
    base = tokens_of(Engine(model.to_pythia()).stream(PROMPT, options, 40, seed=3))
    exact = replace(options, exact=True)
    assert tokens_of(Engine(model.to_pythia()).stream(PROMPT, exact, 40, seed=3)) == base
    for nothing_drafted in (replace(exact, exact_threshold=1.0), replace(exact, max_order=1)):
        steps = list(Engine(model).stream(PROMPT, nothing_drafted, 40, seed=3))
        assert tokens_of(steps) == base and not any(step.drafted or step.rejected for step in steps)


@pytest.mark.parametrize(
    "shape", [{}, {"heads": 4}, {"head_source": "last"}, {"heads": 2, "head_layers": 2}], ids=str
)
@pytest.mark.parametrize("packed", [True, False])
def test_rolled_back_cache_equals_a_cacheless_pass(shape, packed):
    """Chunks of drafts are fed, all positions read, and a random number of the last ones taken back."""
    rng = np.random.default_rng(1)
    model = tiny_dynamo(**shape)
    decoder = Decoder(model, packed=packed)
    state = decoder.new_cache(400)
    ids = list(PROMPT)
    decoder.forward(state, ids)
    for step in range(60):
        chunk = rng.integers(0, 300, rng.integers(1, 4)).tolist()
        logits = decoder.forward(state, chunk, queries=len(chunk))
        if step % 6 == 0:
            with torch.no_grad():
                whole = model(torch.tensor([ids + chunk])).head_logits[:, 0, -len(chunk) :]
            torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
        rejected = int(rng.integers(0, len(chunk)))
        state.crop(rejected)
        ids += chunk[: len(chunk) - rejected]
    assert state.length == len(ids)


def test_stop_string_inside_accepted_drafts_ends_the_text(tokenizer):
    model = tiny_dynamo()
    options = SamplingOptions(exact=True, temperature=0, repetition_penalty=1.0)
    engine = Engine(model, random_table(), tokenizer)
    free = tokens_of(engine.stream(PROMPT, options, 60))
    pieces = IncrementalDecoder(tokenizer).push(free)
    place = next(i for i, piece in enumerate(pieces) if i > 3 and piece and piece not in "".join(pieces[:i]))
    assert tokens_of(engine.stream(PROMPT, options, 60, stop=[pieces[place]])) == free[: place + 1]
