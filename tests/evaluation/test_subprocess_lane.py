import os
import time

import pytest
import torch
from conftest import tiny_base
from processes import FRESH
from replies import PROMPTS, reply

from dynamo import Engine, SamplingOptions
from dynamo.evaluation import bench
from dynamo.evaluation.subprocess_lane import Compiled, LaneLost, PairSpec, RemoteLane
from dynamo.trace.recorder import RunCounts

OPTIONS = SamplingOptions(top_k=10)


def working():
    print("a command's result is not to be found among this")
    engine = Engine(tiny_base())
    return lambda prompt, seed: RunCounts.fold(engine.stream(prompt, OPTIONS, 8, seed))


def failing():
    raise RuntimeError("no C++ compiler found\nand many more lines")


def fails_later():
    def lane(prompt, seed):
        if seed:
            raise FloatingPointError("so much for that")
        return reply(2, 2, 1.0)

    return lane


def dying():
    os._exit(7)


def sleeping():
    time.sleep(600)


@pytest.fixture
def no_imports(monkeypatch):
    """Lanes begin at once, not by importing everything anew."""
    monkeypatch.setattr("multiprocessing.get_context", lambda _: FRESH)


at_once = pytest.mark.usefixtures("no_imports")


@pytest.fixture
def remote():
    made = []

    def make(lane, seconds=240.0):
        made.append(RemoteLane(lane, seconds))
        return made[-1]

    yield make
    for lane in made:
        lane.close()


def test_a_lane_elsewhere_replies_as_the_same_lane_at_home(remote, capfd):
    lane, home = remote(working), working()
    for seed, prompt in enumerate(PROMPTS):
        there = lane(prompt, seed)
        assert there.tokens == home(prompt, seed).tokens and there.decode_seconds > 0
    assert capfd.readouterr().out.count("a command's result") == 1, "only the lane at home prints to stdout"
    lane.close()
    assert lane._process.exitcode is not None, "nothing is left running"


@pytest.mark.parametrize(
    "make, seconds, reason",
    [
        (failing, 240, "^RuntimeError: no C\\+\\+ compiler found$"),
        (dying, 240, "^its process ended with code 7$"),
        (sleeping, 0.2, "^no reply within 0 s$"),
    ],
)
@at_once
def test_what_goes_wrong_there_is_one_sentence_and_the_process_is_gone(remote, make, seconds, reason):
    lane = remote(make, seconds)
    with pytest.raises(LaneLost, match=reason):
        lane(PROMPTS[0], 0)
    assert lane._process.exitcode is not None


@at_once
def test_a_lane_that_is_lost_on_the_way_leaves_the_others_times(remote):
    lost, lanes = {}, {"own": lambda prompt, seed: reply(3, 3, 1.0), "compiled": remote(fails_later)}
    times = bench.interleave(lanes, PROMPTS, 2, lost=lost)
    assert list(times) == ["own"] and times["own"].tokens.tolist() == [[3, 3, 3]] * 2
    assert lost == {"compiled": "FloatingPointError: so much for that"}
    with pytest.raises(LaneLost):
        bench.interleave({"compiled": remote(failing)}, PROMPTS)


def test_the_compiled_lane_is_made_from_words_and_runs_the_specs_base(monkeypatch):
    """The compiler itself takes minutes: it is asked for, and given back what it was given."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: asked.append(step) or step)
    spec = PairSpec("embedded", "2x32x4x500", "cpu")
    lane = Compiled(spec, OPTIONS, 8, torch.get_num_threads())()
    own = Engine(spec.load().base)
    for seed, prompt in enumerate(PROMPTS):
        assert lane(prompt, seed).tokens == RunCounts.fold(own.stream(prompt, OPTIONS, 8, seed)).tokens
    assert asked
    assert PairSpec("embedded").load().name == "embedded"
