import pytest
import torch
from conftest import tiny_dynamo

from dynamo import Engine, Pair, SamplingOptions
from dynamo.common.memory import peak_memory
from dynamo.evaluation import cost, shapes
from dynamo.evaluation.subprocess_lane import LaneLost
from dynamo.loading.sizes import PYTHIA
from dynamo.trace.recorder import RunCounts

PROMPTS = [[5, 6, 7], [8, 9], [250, 4, 11, 12]]


@pytest.fixture(scope="module")
def pair():
    model = tiny_dynamo()
    return Pair("tiny", "", model.to_pythia(), model, None, None)


# -- what passes cost -------------------------------------------------------------------------------------


def test_costs_by_context_and_by_candidates(pair):
    costs = cost.context_cost(pair, [4, 100], SamplingOptions(), runs=1)
    assert set(costs) == {"4", "100"}
    for of in costs.values():
        assert set(of) == {"generate", "own", "dynamo", "exact"} and min(of.values()) > 0
    (of,) = cost.context_cost(pair, [4], SamplingOptions(), runs=1, weights=["int8"]).values()
    assert {"own_int8", "dynamo_int8", "exact_int8"} < set(of)
    by_k = cost.top_k_cost(pair, PROMPTS, [2, 20], SamplingOptions(threshold=0.1))
    assert set(by_k) == {"2", "20"} and by_k["20"]["joint and mask"] > 0
    for of in by_k.values():
        sampler = of["top-k"] + of["joint and mask"] + of["draw"]
        assert of["sampler_share"] == pytest.approx(sampler / (of["pass"] - sampler))


def test_another_engines_cost_by_context_ends_where_it_fails(pair):
    def peer(prompt, seed):
        if len(prompt) > 4:
            raise LaneLost("no room")
        return RunCounts(decode_passes=2 * seed, decode_seconds=seed / 100)  # none of the first reply

    lost = {}
    costs = cost.context_cost(pair, [4, 9], SamplingOptions(), 2, peers={"peer": peer}, lost=lost)
    assert costs["4"]["peer"] == pytest.approx(5.0), "milliseconds of a pass"
    assert set(costs["9"]) == {"generate", "own", "dynamo", "exact"}
    assert lost == {"peer": "9 tokens of context: no room"}


def test_throughput_by_rows_times_every_lane(pair):
    options = SamplingOptions(threshold=0.1)
    speeds = cost.rows_throughput(pair, PROMPTS, [1, 3], options, 16, runs=1, weights=["int8"])
    assert set(speeds) == {"1", "3"}
    lanes = {"own", "dynamo", "exact", "own_int8", "dynamo_int8", "exact_int8"}
    assert all(set(of) == lanes and min(of.values()) > 0 for of in speeds.values())


def test_rows_are_filled_with_the_prompts_and_a_lane_that_fails_is_left_out(pair):
    asked, lost = [], {}

    def peer(prompts, seeds, max_new_tokens):
        assert max_new_tokens == 8
        asked.append((prompts, list(seeds)))
        if len(prompts) == 5:
            raise LaneLost("no room for five")
        return 10 * len(prompts), 2.0

    one, two, three = PROMPTS
    by_rows = ([one, two], [0, 1]), ([three], [2])
    speeds = cost.rows_throughput(pair, PROMPTS, [2], SamplingOptions(), 8, runs=2, peers={"peer": peer})
    assert asked == [by_rows[0], *by_rows, *by_rows], "one group warms up"
    assert speeds["2"]["peer"] == 30 / 4
    speeds = cost.rows_throughput(
        pair, PROMPTS, [2, 5], SamplingOptions(), 8, runs=1, peers={"peer": peer}, lost=lost
    )
    assert asked[-1] == ([one, two, three, one, two], [0, 1, 2, 3, 4])
    assert lost == {"peer": "no room for five"} and set(speeds["2"]) == {"own", "dynamo", "exact"}


def test_context_must_leave_room_for_what_is_timed(pair):
    with pytest.raises(ValueError, match="context: "):
        cost.context_cost(pair, [640], SamplingOptions())


def test_bandwidth_and_memory_are_positive():
    assert cost.bandwidth(torch.device("cpu"), torch.float32, repeats=1) > 0
    assert peak_memory(torch.device("cpu")) > 50 * 2**20


# -- random weights in a real shape -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_pair_always_emits_all_its_tokens(dtype):
    pair = shapes.random_pair("3x32x4x500", torch.device("cpu"), dtype)
    options = SamplingOptions(repetition_penalty=1.0)
    records = list(Engine(pair.dynamo).stream([5, 6, 7], options, 30))
    assert [record.order for record in records] == [3] * 10
    assert sum(len(r.tokens) for r in Engine(pair.base).stream([5, 6, 7], options, 30)) == 30, "no early end"
    assert pair.base.dtype == pair.dynamo.dtype == dtype


def test_random_pair_shares_its_weights_and_is_whole():
    """Buffers made on the meta device must be made again: same logits as a model built from the weights."""
    pair = shapes.random_pair("2x32x4x500", torch.device("cpu"))
    assert pair.base.lm_head.weight is pair.dynamo.backbone.lm_head.weight
    built = type(pair.base)(pair.base.config)
    built.load_state_dict(pair.base.state_dict())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(pair.base(ids).logits, built.eval()(ids).logits)
        torch.testing.assert_close(pair.dynamo(ids).logits, pair.base(ids).logits)


def test_shapes_of_the_suite_have_its_parameters():
    """Counts by the suite's model cards, without a weight of memory."""
    for name, parameters in (
        ("70m", 70_426_624),
        ("1.4b", 1_414_647_808),
        ("6.9b", 6_857_302_016),
    ):
        layers, hidden, _, vocabulary = PYTHIA[name]
        layer = 12 * hidden**2 + 13 * hidden
        assert layers * layer + 2 * vocabulary * hidden + 2 * hidden == parameters


@pytest.mark.parametrize("shape", ["pythia-3b", "6x512", "1x32x4x500", "2x30x4x500", ""])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape: "):
        shapes.random_pair(shape, torch.device("cpu"))
