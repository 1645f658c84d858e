import json
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_dynamo

from dynamo import Pair, SamplingOptions
from dynamo.decoding.decoder import Decoder
from dynamo.evaluation.profile import PARTS, SAMPLER_STAGES, LaneSplit, _Stopwatch, split

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
    measured = split(pair_of(model), PROMPTS, SamplingOptions(threshold=0.2), max_new_tokens=12)
    written = json.loads(json.dumps(measured.to_json()))
    assert set(written) == {"base", "dynamo"}
    for lane in written.values():
        assert set(lane["parts"]) == {*PARTS, "rest"}
        assert sum(lane["parts"].values()) == pytest.approx(lane["pass_ms"])
        assert all(ms >= 0 for ms in lane["parts"].values()) and lane["passes"] > 1
        assert all(lane["parts"][part] > 0 for part in ("stem", "heads", "output embedding", "top-k", "draw"))
    assert written["dynamo"]["parts"]["joint and mask"] > 0
    assert written["base"]["parts"]["joint and mask"] == 0, "one head has no joint"


def test_everything_is_put_back_afterwards():
    before = [getattr(owner, name) for owner, name, _ in SAMPLER_STAGES]
    split(pair_of(tiny_dynamo()), PROMPTS, max_new_tokens=6)
    assert [getattr(owner, name) for owner, name, _ in SAMPLER_STAGES] == before
    with pytest.raises(ValueError, match="got 999"):
        split(pair_of(tiny_dynamo()), [*PROMPTS, [999]], max_new_tokens=6)
    assert [getattr(owner, name) for owner, name, _ in SAMPLER_STAGES] == before


def test_sampler_share_is_its_time_over_the_forward_pass():
    parts = dict(zip((*PARTS, "rest"), (4.0, 2.0, 1.0, 0.5, 1.0, 0.5, 1.0), strict=True))
    assert LaneSplit(parts, 10.0, 3).sampler_share == pytest.approx(2 / 8)


def test_time_inside_an_inner_stage_is_not_the_outer_ones(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dynamo.evaluation.profile.time.perf_counter", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds

    room = SimpleNamespace(inner=lambda: spend(2.0))
    room.outer = lambda: (spend(1.0), room.inner(), spend(4.0))
    stopwatch = _Stopwatch(torch.device("cpu"))
    with stopwatch.around(iter([(room, "inner", "a"), (room, "outer", lambda: "b")])):
        room.outer()
        assert stopwatch.take() == {"a": 2.0, "b": 5.0}
        room.inner()
        assert stopwatch.take() == {"a": 2.0}
        other = threading.Thread(target=room.outer)
        other.start()
        other.join()
        assert not stopwatch.take(), "other threads' work is not counted"


def test_replies_of_one_pass_tell_nothing():
    model = tiny_dynamo()
    with pytest.raises(ValueError, match="no reply is longer than one pass"):
        split(pair_of(model), PROMPTS, max_new_tokens=1)
