import json
import threading

import pytest
import torch
from conftest import tiny_dynamo

from dynamo import Pair, SamplingOptions
from dynamo.common import laps
from dynamo.decoding.decoder import Decoder
from dynamo.evaluation.profile import PARTS, LaneSplit, profile_lanes

PROMPTS = [[5, 6, 7], [8, 9]]


def pair_of(model):
    return Pair("tiny", "", model.to_pythia(), model, None, None)


MODELS = {
    "packed": lambda: tiny_dynamo(),
    "in halves": lambda: tiny_dynamo().to(torch.bfloat16),
    "heads on the last layer": lambda: tiny_dynamo(head_source="last"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_parts_and_rest_make_up_the_pass_on_every_path(make):
    model = make()
    assert Decoder(model).packed == (make is MODELS["packed"])
    measured = profile_lanes(pair_of(model), PROMPTS, SamplingOptions(threshold=0.2), max_new_tokens=12)
    written = json.loads(json.dumps({lane: each.to_json() for lane, each in measured.items()}))
    assert set(written) == {"base", "dynamo"}
    for lane in written.values():
        assert set(lane["parts"]) == {*PARTS, "rest"}
        assert sum(lane["parts"].values()) == pytest.approx(lane["pass_ms"])
        assert all(ms >= 0 for ms in lane["parts"].values()) and lane["passes"] > 1
        assert all(lane["parts"][part] > 0 for part in ("stem", "heads", "output embedding", "top-k", "draw"))
    assert written["dynamo"]["parts"]["joint and mask"] > 0
    assert written["base"]["parts"]["joint and mask"] == 0, "one head has no joint"


def test_nothing_is_timed_afterwards():
    profile_lanes(pair_of(tiny_dynamo()), PROMPTS, max_new_tokens=6)
    assert laps._running is None
    with pytest.raises(ValueError, match="got 999"):
        profile_lanes(pair_of(tiny_dynamo()), [*PROMPTS, [999]], max_new_tokens=6)
    assert laps._running is None


def test_sampler_share_is_its_time_over_the_forward_pass():
    parts = dict(zip((*PARTS, "rest"), (4.0, 2.0, 1.0, 0.5, 1.0, 0.5, 1.0), strict=True))
    assert LaneSplit(parts, 10.0, 3).sampler_share == pytest.approx(2 / 8)


def test_a_lap_is_the_time_since_the_last_one_in_this_thread(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dynamo.common.laps.time.perf_counter", lambda: clock[0])

    def spend(seconds, part):
        clock[0] += seconds
        laps.lap(part)

    stopwatch = laps.Stopwatch()
    with laps.running(stopwatch):
        spend(1.0, "a"), spend(2.0, "b"), spend(4.0, "a")
        assert stopwatch.take() == {"a": 5.0, "b": 2.0}
        other = threading.Thread(target=laps.lap, args=["c"])
        other.start()
        other.join()
        assert not stopwatch.take(), "other threads' work is not counted"
    spend(8.0, "a")
    assert not stopwatch.take()


def test_replies_of_one_pass_tell_nothing():
    model = tiny_dynamo()
    with pytest.raises(ValueError, match="no reply is longer than one pass"):
        profile_lanes(pair_of(model), PROMPTS, max_new_tokens=1)
