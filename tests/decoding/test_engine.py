from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo
from engines import PROMPT, tokens_of
from oracle import choose as oracle_choose
from tables import random_table

from dynamo.data.text import IncrementalDecoder
from dynamo.decoding.decoder import Decoder
from dynamo.decoding.engine import Engine
from dynamo.decoding.generate import GenerateEngine
from dynamo.model import DynamoForCausalLM
from dynamo.sampling.options import SamplingOptions


@pytest.fixture(scope="module")
def table():
    return random_table()


OTHER_SHAPES = (
    {"heads": 4}, {"heads": 2, "head_layers": 2}, {"head_source": "last"}, {"own_output_embedding": True},
    {"own_output_embedding": True, "head_layers": 0, "heads": 2}, {"own_final_norm": True},
)  # fmt: skip


@pytest.mark.parametrize(
    "shape", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHER_SHAPES)], ids=str
)
@pytest.mark.parametrize("packed", [True, False])
def test_cached_decode_equals_uncached_over_200_steps_of_1_2_and_3_tokens(shape, packed):
    model = tiny_dynamo(**shape)
    decoder = Decoder(model, packed=packed)
    regular = "head_source" not in shape and shape.get("head_layers", 1) == 1
    assert decoder.packed == (packed and regular)
    chunks, rng = itertools.cycle([1, 3, 2, 2, 1, 3]), np.random.default_rng(0)
    ids = list(PROMPT)
    state = decoder.new_cache(capacity=500)
    cached, ends = [decoder.forward(state, ids)], [len(ids) - 1]
    for _ in range(200):
        chunk = rng.integers(0, 300, next(chunks)).tolist()
        ids += chunk
        cached.append(decoder.forward(state, chunk))
        ends.append(len(ids) - 1)
    assert state.length == len(ids)
    with torch.no_grad():
        uncached = model(torch.tensor([ids])).head_logits[:, 0, ends]  # (heads, steps, vocab)
    assert (torch.stack(cached, dim=1) - uncached).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_of_a_mask_begins_where_cudas_attention_can_read_it(dtype):
    # It takes strides of 8 numbers for aligned, then reads 16 bytes from where the mask itself begins.
    decoder = Decoder(tiny_dynamo().to(dtype))
    for new in (2, 3, 5, 8, 9, 30):
        for stop in range(new, decoder.max_length + 1):
            mask = decoder._masks(new, stop)
            expected = torch.full((new, stop), float("-inf")).triu(stop - new + 1).to(dtype)
            assert torch.equal(mask, expected), (new, stop)
            assert mask.stride(0) % 8 == 0 and mask.storage_offset() % 8 == 0, (new, stop)
    assert len(decoder._masks._ends) <= 4 * 8, "masks of usual chunks are made once, for each remainder"


def test_stock_model_decodes_as_transformers_does(base):
    decoder = Decoder(base)
    state = decoder.new_cache(64)
    decoder.forward(state, PROMPT)
    logits = decoder.forward(state, [9, 8, 7])
    with torch.no_grad():
        expected = base(torch.tensor([[*PROMPT, 9, 8, 7]])).logits[0, -1:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_sequential_residual_and_missing_attention_bias_are_the_models_own():
    for changes in ({"use_parallel_residual": False}, {"attention_bias": False}, {"hidden_act": "relu"}):
        base = tiny_base(**changes)
        decoder = Decoder(base)
        assert decoder.packed
        state = decoder.new_cache(16)
        decoder.forward(state, PROMPT)
        with torch.no_grad():
            expected = base(torch.tensor([[*PROMPT, 1, 2]])).logits[0, -1:]
        torch.testing.assert_close(decoder.forward(state, [1, 2]), expected, atol=1e-4, rtol=1e-4)


def test_fewer_heads_give_the_same_logits_for_those_that_run():
    model = tiny_dynamo(heads=4)
    for packed in (True, False):
        whole, part = (Decoder(model, packed=packed) for _ in range(2))
        states = whole.new_cache(16), part.new_cache(16)
        for tokens in (PROMPT, [3], [4, 5]):
            expected = whole.forward(states[0], tokens)[:2]
            torch.testing.assert_close(
                part.forward(states[1], tokens, heads=2), expected, atol=1e-5, rtol=1e-5
            )


def slow_generate(model, table, options, max_new_tokens, seed):
    """The oracle loop: no cache, the dense oracle sampler, one uniform per step."""
    import random

    uniforms, ids, orders = random.Random(seed), list(PROMPT), []
    ratio = None if table is None else lambda cell: float(table.ratio(np.array(cell)))
    ends = {3}
    while len(ids) < len(PROMPT) + max_new_tokens:
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        logits = (
            output.head_logits[:, 0, -1] if isinstance(model, DynamoForCausalLM) else output.logits[:, -1]
        )
        decision = oracle_choose(logits.numpy(), ids, ratio, options, uniforms.random(), special_ids=ends)
        room = len(PROMPT) + max_new_tokens - len(ids)
        tokens = list(itertools.takewhile(lambda t: t not in ends, decision.tokens[:room]))
        ended = len(tokens) < min(room, decision.order)
        ids += tokens + ([3] if ended else [])
        orders.append(decision.order)
        if ended:
            break
    return ids[len(PROMPT) :], orders


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("seed", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2))])
def test_engine_equals_the_cacheless_oracle_loop(threshold, seed, table):
    model = tiny_dynamo(seed=seed)
    options = SamplingOptions(threshold=threshold, top_k=6, temperature=1.0)
    steps = list(Engine(model, table).stream(PROMPT, options, max_new_tokens=20, seed=seed))
    tokens, orders = slow_generate(model, table, options, 20, seed)
    assert [t for step in steps for t in step.tokens] == tokens
    assert [step.order for step in steps] == orders


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_threshold_1_equals_the_baseline_loop_token_for_token(seed, temperature, table):
    model = tiny_dynamo(seed=seed)
    options = SamplingOptions(threshold=1.0, temperature=temperature, top_k=20)
    ours = list(Engine(model, table).stream(PROMPT, options, 60, seed))
    baseline = list(Engine(model.to_pythia()).stream(PROMPT, options, 60, seed))
    assert tokens_of(ours) == tokens_of(baseline)
    assert {step.order for step in ours} == {1} and all(not step.backoffs for step in ours)


def test_threshold_0_always_emits_all_heads_without_a_mask():
    steps = list(Engine(tiny_dynamo()).stream(PROMPT, SamplingOptions(threshold=0.0), 61, seed=4))
    assert {step.order for step in steps} == {3}
    assert [len(step.tokens) for step in steps[:-1]] == [3] * (len(steps) - 1)


def test_one_record_per_pass_and_the_first_is_the_prefill(table):
    """One record per pass each with a token and the first marked as prefill."""
    steps = list(Engine(tiny_dynamo(), table).stream(PROMPT, SamplingOptions(threshold=0.2, top_k=8), 50))
    assert len(steps) > 5
    assert [step.prefill for step in steps] == [True] + [False] * (len(steps) - 1)
    for step in steps:
        assert 1 <= len(step.tokens) <= step.order <= 3
        assert len(step.probabilities) == len(step.tokens) and all(0 < p <= 1 for p in step.probabilities)
        assert [b.order for b in step.backoffs] == list(range(3, step.order, -1))
        assert step.seconds > 0
    cells = next(step.cells for step in steps if step.cells)
    assert [cell.value for cell in cells] == sorted((cell.value for cell in cells), reverse=True)
    assert len(cells) <= 64


def test_same_seed_same_text_and_other_seed_other_text(table):
    engine = Engine(tiny_dynamo(), table)
    options = SamplingOptions(temperature=1.5)
    first, again, other = (tokens_of(engine.stream(PROMPT, options, 40, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_interleaved_streams_of_one_engine_do_not_touch_each_other(table):
    engine = Engine(tiny_dynamo(), table)
    alone = [tokens_of(engine.stream([*PROMPT, i], max_new_tokens=30, seed=i)) for i in range(3)]
    lanes = [engine.stream([*PROMPT, i], max_new_tokens=30, seed=i) for i in range(3)]
    texts = [[], [], []]
    for round_ in itertools.zip_longest(*lanes):
        for text, step in zip(texts, round_, strict=True):
            text.extend(step.tokens if step else ())
    assert texts == alone


def test_end_of_text_inside_a_chunk_is_emitted_and_ends_the_text():
    """The second token of the first chunk is declared an end of text."""
    model = tiny_dynamo()
    steps = list(Engine(model).stream(PROMPT, SamplingOptions(threshold=0.0, temperature=0), 30))
    first = steps[0].tokens
    assert len(set(first)) > 1, "the case needs a chunk of different tokens"
    model.generation_config.eos_token_id = [first[1], 299]
    cut = list(Engine(model).stream(PROMPT, SamplingOptions(threshold=0.0, temperature=0), 30))
    assert len(cut) == 1 and cut[0].tokens == first[: first.index(first[1]) + 1] and cut[0].order == 3


@pytest.mark.parametrize("engine_of", [Engine, GenerateEngine])
def test_every_id_that_ends_a_text_ends_it(engine_of, tokenizer):
    """The model's own, eos of the tokenizer, and what its chat template ends an answer with."""
    model = tiny_base(seed=4)
    model.generation_config.eos_token_id = [7, 9]
    ends = engine_of(model, tokenizer=tokenizer).end_ids
    assert ends == {7, 9, tokenizer.eos_token_id}
    assert engine_of(model).end_ids == {7, 9}
    options = SamplingOptions(temperature=0)
    free = [t for step in engine_of(model).stream(PROMPT, options, 20) for t in step.tokens]
    other = copy.deepcopy(tokenizer)
    other.eos_token = other.convert_ids_to_tokens(free[4])
    cut = [t for step in engine_of(model, tokenizer=other).stream(PROMPT, options, 20) for t in step.tokens]
    assert cut == free[: free.index(free[4]) + 1]


def test_stop_string_before_an_end_of_text_in_the_same_chunk_wins(tokenizer):
    model = tiny_dynamo()
    options = SamplingOptions(threshold=0.0, temperature=1.5)
    chunks = [step.tokens for step in Engine(model, tokenizer=tokenizer).stream(PROMPT, options, 90)]
    before, pieces = [], IncrementalDecoder(tokenizer)
    for chunk in chunks:
        words = pieces.push(chunk)
        if (
            words[0].isalnum()
            and words[0] not in "".join(before)
            and chunk[2] not in sum(chunks, ())[: len(before)]
        ):
            break
        before += words
    model.generation_config.eos_token_id = [chunk[2]]
    engine = Engine(model, tokenizer=tokenizer)
    cut = tokens_of(engine.stream(PROMPT, options, 90, stop=[words[0]]))
    assert cut[-1] == chunk[0] and len(cut) == len(before) + 1


def test_length_cuts_inside_a_chunk():
    for limit in range(1, 8):
        steps = list(Engine(tiny_dynamo()).stream(PROMPT, SamplingOptions(threshold=0.0), limit))
        assert len(tokens_of(steps)) == limit


def test_reply_stops_at_the_models_last_position():
    engine = Engine(tiny_dynamo())
    model_end = engine.max_length
    steps = engine.stream([7] * (model_end - 4), SamplingOptions(threshold=0.0), max_new_tokens=50)
    assert len(tokens_of(steps)) == 4


def test_stop_string_ends_the_text_inside_a_chunk(tokenizer):
    model = tiny_dynamo()
    options = SamplingOptions(threshold=0.0, temperature=1.5)
    free = tokens_of(Engine(model, tokenizer=tokenizer).stream(PROMPT, options, 60))
    pieces = IncrementalDecoder(tokenizer).push(free)
    stop, place = next(
        (p, i) for i, p in enumerate(pieces) if p.isalnum() and i > 6 and p not in "".join(pieces[:i])
    )
    cut = tokens_of(Engine(model, tokenizer=tokenizer).stream(PROMPT, options, 60, stop=[stop]))
    assert cut == free[: place + 1]
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        Engine(model).stream(PROMPT, stop=["x"])


def test_mask_strength_0_equals_no_table(table):
    options = SamplingOptions(mask_strength=0.0, threshold=0.1)
    with_table = tokens_of(Engine(tiny_dynamo(), table).stream(PROMPT, options, 30))
    assert with_table == tokens_of(Engine(tiny_dynamo()).stream(PROMPT, options, 30))
