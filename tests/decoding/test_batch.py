"""Several lanes in one pass, and states that are used again."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT, tokens_of
from tables import random_table

from dynamo.decoding.cache import CachePool
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.engine import Engine
from dynamo.model import DynamoForCausalLM
from dynamo.sampling.options import SamplingOptions

PROMPTS = [[*PROMPT, 7 * row] * (1 + row % 3) for row in range(6)]


@pytest.fixture(scope="module")
def table():
    return random_table()


def rows_of(pairs, count):
    rows = [[] for _ in range(count)]
    for row, step in pairs:
        rows[row].append(step)
    return rows


@pytest.mark.parametrize(
    "changes",
    [{"threshold": 0.0}, {"threshold": 0.3}, {"threshold": 1.0}, {"exact": True},
     {"temperature": 0, "exact": True}, {"exact": True, "exact_vocabulary": 90},
     {"max_order": 2, "threshold": 0.1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("model", [tiny_base(), tiny_dynamo(seed=1)], ids=["stock", "dynamo"])
@pytest.mark.slow
def test_each_row_of_a_batch_is_the_stream_of_its_prompt_and_seed(changes, model, table):
    """The tiny models' logits differ enough for rounding not to decide anything."""
    if isinstance(model, DynamoForCausalLM):
        model.count_tokens(torch.arange(200, 300))
    engine = Engine(model, table)
    options = SamplingOptions(**{"temperature": 1.0, "top_k": 12, **changes})
    seeds = [11, 3, 5, 2, 2, 9]
    batch = rows_of(engine.stream_batch(PROMPTS, options, 25, seeds), len(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        alone = list(engine.stream(prompt, options, 25, seeds[row]))
        assert [step.tokens for step in batch[row]] == [step.tokens for step in alone]
        for ours, other in zip(batch[row], alone, strict=True):
            assert (ours.prefill, ours.order, ours.drafted, ours.rejected) == (
                other.prefill, other.order, other.drafted, other.rejected
            )  # fmt: skip
            assert [b[:2] for b in ours.backoffs] == [b[:2] for b in other.backoffs]
            assert ours.probabilities == pytest.approx(other.probabilities, rel=1e-3)


@pytest.mark.parametrize("shape", [{}, {"head_source": "last"}, {"heads": 2, "head_layers": 2}], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_a_batched_pass_gives_each_lane_the_logits_of_its_own_pass(shape, packed):
    """Chunks of 1 to 3 tokens, different in every row; positions are taken back; lanes leave."""
    rng = np.random.default_rng(4)
    model = tiny_dynamo(**shape)
    decoder = Decoder(model, packed=packed)
    texts = [rng.integers(0, 300, length).tolist() for length in (9, 3, 14, 6)]
    state = decoder.new_batch(len(texts), 120)
    for lane, text in zip(state.rows, texts, strict=True):
        decoder.forward(lane, text)
    for step in range(24):
        if step in (8, 16):
            place = int(rng.integers(0, len(texts)))
            state.drop(place)
            texts[place] = texts[-1]
            texts.pop()
        chunks = [rng.integers(0, 300, rng.integers(1, 4)).tolist() for _ in texts]
        if step % 5 == 0:
            chunks = [rng.integers(0, 300, 2).tolist() for _ in texts]
        queries = [int(rng.integers(1, len(chunk) + 1)) for chunk in chunks]
        logits = decoder.forward_batch(state, chunks, queries=queries).split(queries, dim=1)
        for lane, text, chunk, asked, own in zip(state.rows, texts, chunks, queries, logits, strict=True):
            text += chunk
            if step % 4 == 0:
                with torch.no_grad():
                    whole = model(torch.tensor([text])).head_logits[:, 0, -asked:]
                torch.testing.assert_close(own, whole, atol=1e-4, rtol=1e-4)
            rejected = int(rng.integers(0, len(chunk)))
            lane.crop(rejected)
            del text[len(text) - rejected :]
            assert lane.length == len(text)


def test_prompts_come_first_then_a_record_for_each_row_that_is_left():
    model = tiny_dynamo()
    engine = Engine(model)
    options = SamplingOptions(threshold=0.0, temperature=1.5)
    ends = [tokens_of(engine.stream(prompt, options, 30, row))[6] for row, prompt in enumerate(PROMPTS)]
    model.generation_config.eos_token_id = ends[:3]
    pairs = list(Engine(model).stream_batch(PROMPTS, options, 30))
    lengths = [len(row) for row in rows_of(pairs, len(PROMPTS))]
    assert min(lengths) < max(lengths), "some rows must end before others"
    assert [row for row, _ in pairs[: len(PROMPTS)]] == list(range(len(PROMPTS)))
    assert [step.prefill for _, step in pairs] == [True] * 6 + [False] * (len(pairs) - 6)
    left = pairs[6:]
    for passes in range(2, max(lengths) + 1):
        running = {row for row, length in enumerate(lengths) if length >= passes}
        now, left = left[: len(running)], left[len(running) :]
        assert {row for row, _ in now} == running
        assert len({step.seconds for _, step in now}) == 1
    assert not left


def test_a_batch_is_refused_before_anything_is_yielded(table):
    engine = Engine(tiny_dynamo(), table)
    with pytest.raises(ValueError, match="prompts: "):
        engine.stream_batch([])
    with pytest.raises(ValueError, match="seeds: "):
        engine.stream_batch([PROMPT, PROMPT], seeds=[1])
    with pytest.raises(ValueError, match="expected ids from 0 to 299, got 300"):
        engine.stream_batch([PROMPT, [300]])


# --- states that are used again ---


def test_streams_one_after_the_other_use_the_same_state(monkeypatch):
    engine = Engine(tiny_dynamo())
    made = []
    new_cache = Decoder.new_cache
    monkeypatch.setattr(
        Decoder, "new_cache", lambda self, capacity: made.append(capacity) or new_cache(self, capacity)
    )
    texts = [tokens_of(engine.stream(PROMPT, max_new_tokens=20, seed=1)) for _ in range(3)]
    assert texts[0] == texts[1] == texts[2] and len(made) == 1
    closed = engine.stream(PROMPT)
    next(closed)
    closed.close()
    tokens_of(engine.stream(PROMPT, max_new_tokens=20))
    assert len(made) == 2  # 5 + 128 positions do not fit into 128, 5 + 20 do
    assert engine._pool.idle == 2


def test_a_stream_that_fails_gives_its_state_back(monkeypatch):
    engine = Engine(tiny_dynamo())
    stream = engine.stream(PROMPT)
    next(stream)
    assert engine._pool.idle == 0
    monkeypatch.setattr(Decoder, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert engine._pool.idle == 1


def test_nobody_waits_for_a_state_and_few_are_kept():
    decoder = Decoder(tiny_dynamo())
    pool = CachePool(decoder.new_cache, decoder.max_length, largest=2)
    leases = [pool.lease(100 * (1 + i)) for i in range(5)]
    states = [lease.__enter__() for lease in leases]
    assert [state.capacity for state in states] == [128, 256, 384, 512, 512]
    assert len({id(state) for state in states}) == 5
    for lease in leases:
        lease.__exit__(None, None, None)
    assert pool.idle == 2
    with pool.lease(300) as longer, pool.lease(300) as other:
        assert longer is not other and pool.idle == 0
    with pool.lease(1) as state:
        assert state.capacity == 512 and state.length == 0, "the largest ones are kept"
    assert CachePool(decoder.new_cache, 130).lease(129).__enter__().capacity == 130


def test_a_state_that_is_large_enough_is_lent_whatever_else_lies_in_the_pool():
    """States were once compared by their tensors, which differ in size."""
    decoder = Decoder(tiny_dynamo())
    pool = CachePool(decoder.new_cache, decoder.max_length)
    with pool.lease(100) as small, pool.lease(300) as large:
        pass
    with pool.lease(200) as again:
        assert again is large
    with pool.lease(5) as again:
        assert again is small


def test_streams_in_threads_do_not_touch_each_other(table):
    engine = Engine(tiny_dynamo(), table)
    options = SamplingOptions(threshold=0.2)
    expected = [tokens_of(engine.stream(prompt, options, 30, 1)) for prompt in PROMPTS]
    found: dict[int, list[list[int]]] = {row: [] for row in range(len(PROMPTS))}

    def run(row):
        for _ in range(4):
            found[row].append(tokens_of(engine.stream(PROMPTS[row], options, 30, 1)))

    threads = [threading.Thread(target=run, args=(row,)) for row in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[row] == [expected[row]] * 4 for row in found)
    assert engine._pool.idle <= 4


def test_a_long_stream_finds_its_memory_behind_a_shorter_one():
    """Idle states of two sizes were compared tensor by tensor, and the second stream of 300 tokens failed."""
    engine = Engine(tiny_dynamo())
    for length in (4, 300, 4, 300):
        assert list(engine.stream([7] * length, SamplingOptions(threshold=0.0), 4))
