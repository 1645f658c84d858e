import json

import numpy as np
import pytest
from bases import new_base
from conftest import tiny_dynamo
from replies import PROMPTS, reply

from dynamo import Engine, Pair, SamplingOptions
from dynamo.evaluation import bench
from dynamo.evaluation.bench import Times
from dynamo.trace.recorder import RunCounts


@pytest.fixture(scope="module")
def pair():
    model = tiny_dynamo()
    return Pair("tiny", "", model.to_pythia(), model, None, None)


# -- what is compared -------------------------------------------------------------------------------------


def test_lanes_take_turns_and_warm_up_first():
    log = []
    lanes = {
        name: lambda prompt, seed, name=name: log.append((name, prompt[0], seed)) or reply(1, 1, 1.0)
        for name in "abc"
    }
    calls = []
    bench.interleave(lanes, PROMPTS[:2], runs=2, progress=lambda: calls.append(1))
    assert log[:3] == [("a", 5, 0), ("b", 5, 0), ("c", 5, 0)], "one reply each to warm up"
    assert len(calls) == 12 and len(log) == 15
    rounds = [log[i : i + 3] for i in range(3, 15, 3)]
    assert [of[0][0] for of in rounds] == ["a", "b", "b", "c"], "nobody is always first"
    for number, of in enumerate(rounds):
        assert sorted(name for name, _, _ in of) == ["a", "b", "c"]
        assert {(prompt, seed) for _, prompt, seed in of} == {((5, 8)[number % 2], number)}


def test_speeds_are_pooled_and_ratios_are_of_pooled_speeds():
    tokens = {5: 10, 8: 30, 250: 2}
    lanes = {
        "own": lambda prompt, seed: reply(tokens[prompt[0]], tokens[prompt[0]], 0.5 * tokens[prompt[0]]),
        "dynamo": lambda prompt, seed: reply(24, 12, 6.0 if seed < 3 else 2.0),
        "generate": lambda prompt, seed: reply(10, 10, 10.0),
    }
    times = bench.interleave(lanes, PROMPTS, runs=2)
    assert times["own"].tokens_per_second == pytest.approx(2)
    assert times["dynamo"].tokens_per_second == pytest.approx(6 * 24 / (3 * 6 + 3 * 2))
    assert times["dynamo"].runs.tolist() == pytest.approx([4, 12])
    assert times["dynamo"].tokens_per_forward == 2
    written = json.loads(json.dumps(times["dynamo"].to_json()))
    assert written["spread"] == pytest.approx(np.std([4, 12], ddof=1))
    assert written["ms_per_pass"] == pytest.approx(1000 * 24 / 72) and written["prefill_ms"] == 100_000
    ratios = bench.ratios(times)
    assert {name: each.value for name, each in ratios.items()} == pytest.approx(
        {"own_over_generate": 2.0, "dynamo_over_own": 3.0, "dynamo_over_generate": 6.0}
    )
    assert bench.conversion(times).value == pytest.approx(1.5)


def test_interval_of_a_ratio_is_over_prompts():
    one = np.ones((2, 4))
    steady = Times(one, one, one, one)
    assert steady.over(steady).low == steady.over(steady).high == 1
    uneven = Times(one * [1, 1, 1, 9], one, one, one)
    estimate = uneven.over(steady)
    assert estimate.value == 3 and estimate.low == 1 and 3 < estimate.high <= 9


@pytest.mark.parametrize("prompts, runs, words", [([], 3, "prompts: "), (PROMPTS, 0, "runs: ")])
def test_nothing_to_measure_is_refused(prompts, runs, words):
    with pytest.raises(ValueError, match=words):
        bench.interleave({}, prompts, runs)


# -- the lanes --------------------------------------------------------------------------------------------


def test_every_lane_decodes_what_its_name_says(pair):
    options = SamplingOptions(threshold=0.2, top_k=10)
    lanes, flags, read = bench.lanes(pair, options, 12)
    runs = {name: lane(PROMPTS[0], 4) for name, lane in lanes.items()}
    assert list(runs) == ["generate", "prompt_lookup", "own", "dynamo", "exact"]
    assert runs["generate"].tokens == runs["own"].tokens, "same weights, options and seed"
    assert set(runs["own"].orders) == set(runs["generate"].orders) == {1}
    expected = RunCounts.fold(Engine(pair.dynamo).stream(PROMPTS[0], options, 12, 4))
    assert runs["dynamo"].tokens == expected.tokens and max(runs["dynamo"].orders) > 1
    assert not runs["exact"].backoffs, "exact mode backs off from nothing"
    assert flags["prompt_lookup"]["prompt_lookup_num_tokens"] == bench.LOOKUP_TOKENS
    assert "prompt_lookup_num_tokens" not in flags["generate"]
    models = dict.fromkeys(lanes, pair.base) | dict.fromkeys(("dynamo", "exact"), pair.dynamo)
    assert read == {name: bench.bytes_per_pass(model) for name, model in models.items()}
    assert list(bench.lanes(pair, options, 12, only=("own",))[0]) == ["own"]


def test_a_draft_model_and_weights_of_fewer_bits_add_lanes(pair):
    options = SamplingOptions(temperature=0.0)
    lanes, flags, read = bench.lanes(pair, options, 24, draft=pair.base, weights=("int8", "int4"))
    assert set(lanes) - {"generate", "prompt_lookup", "own", "dynamo", "exact"} == {
        "assisted", "own_int8", "dynamo_int8", "exact_int8", "own_int4", "dynamo_int4", "exact_int4",
    }  # fmt: skip
    assisted = lanes["assisted"](PROMPTS[0], 4)
    assert assisted.tokens == lanes["generate"](PROMPTS[0], 4).tokens and assisted.passes < 24
    assert flags["assisted"]["draft_parameters"] == pair.base.num_parameters()
    for kept in ("int8", "int4"):
        assert 0 < len(lanes[f"own_{kept}"](PROMPTS[0], 4).tokens) <= 24
        assert max(lanes[f"dynamo_{kept}"](PROMPTS[0], 4).orders) <= 3
    assert read["own_int8"] < read["own"] / 3.5, "matrices in 8 bits, gains and shifts as they are"


def test_greedy_exact_mode_writes_the_own_loops_text(pair):
    lanes, _, _ = bench.lanes(pair, SamplingOptions(temperature=0.0), 20)
    assert lanes["exact"](PROMPTS[2], 0).tokens == lanes["own"](PROMPTS[2], 0).tokens


def test_a_pass_reads_all_weights_but_the_token_embedding(pair):
    """32 hidden units, 64 in the MLP, 300 tokens, 3 layers and the final norm, float32."""
    layer = 3 * 32 * 32 + 3 * 32 + 32 * 32 + 32 + 2 * 64 * 32 + 64 + 32 + 4 * 32
    assert bench.bytes_per_pass(pair.base) == 4 * (3 * layer + 2 * 32 + 300 * 32)
    assert bench.bytes_per_pass(pair.dynamo) == 4 * (5 * layer + 2 * 32 + 300 * 32)
    tied = new_base("llama", intermediate_size=64)
    output, norms = 97 * 32, (2 * 3 + 1) * 32
    matrices = tied.num_parameters() - output - norms
    assert bench.bytes_per_pass(tied) == 4 * (matrices + output + norms), "its token embedding is its output"
    engine = Engine(tied, weights="int4")
    # A group of 32 has 16 bytes, and 2 each for scale and zero; the output embedding has 8 bits.
    four = 20 * matrices // 32 + output + 4 * norms
    assert bench.bytes_per_pass(tied, engine.bytes_per_weight()) == four
