"""Lent model time: everything is pickled, refusals keep their sentence, closing reaches the worker."""

from functools import cache

import pytest
from conftest import tiny_base, tiny_dynamo
from lent_gpu import Spaces

from dynamo import Engine, SamplingOptions
from dynamo.decoding.race import race
from dynamo.sampling.records import StepRecord
from dynamo.ui.server import zerogpu
from dynamo.ui.server.engines import GenerationRequest, LocalEngines, RemoteEngines, quota
from dynamo.ui.server.zerogpu import GpuWorker

PROMPT = [5, 6, 7, 8]
OPTIONS = SamplingOptions(threshold=0.3, mask_strength=0.0)


@pytest.fixture
def spaces():
    return Spaces()


@pytest.fixture
def gpu_worker(spaces, monkeypatch):
    monkeypatch.setattr(zerogpu, "_tasks", {})
    return GpuWorker(25, spaces)


def refuse_empty(ids):
    if not ids:
        raise ValueError("input_ids: the prompt is empty")


def alone(engines, tokens: int, seed: int = 3):
    """One run of the engine "dynamo"."""
    return engines.start({"lane": GenerationRequest("dynamo", tuple(PROMPT), OPTIONS, tokens, seed)})["lane"]


def test_remote_engines_emit_what_local_ones_do(gpu_worker):
    model = tiny_dynamo()
    made = []

    def make():
        made.append(True)
        return Engine(model)

    remote = RemoteEngines(gpu_worker, "tiny", {"dynamo": cache(make)}, refuse_empty)
    assert made == []
    local = LocalEngines({"dynamo": Engine(model)})
    runs = [[step.tokens for step in alone(each, 12)] for each in (local, remote, remote)]
    assert runs[0] == runs[1] == runs[2] and made == [True]


def test_both_lanes_are_one_request_and_each_takes_its_own_passes(gpu_worker, spaces):
    model = tiny_dynamo()
    makers = {"loop": lambda: Engine(tiny_base()), "dynamo": lambda: Engine(model)}
    lent = RemoteEngines(gpu_worker, "tiny", makers, refuse_empty)
    asked = {name: GenerationRequest(name, tuple(PROMPT), OPTIONS, 10, 3) for name in ("dynamo", "loop")}
    came = {name: [] for name in asked}
    for name, record in race(lent.start(asked)):
        came[name].append(record)
    assert spaces.asked == [25]
    for name, records in came.items():
        alone = makers[name]().stream(PROMPT, OPTIONS, max_new_tokens=10, seed=3)
        assert [each.tokens for each in records[:-1]] == [each.tokens for each in alone]
        assert records[-1] is None


def test_a_lane_may_be_asked_first_or_last_and_loses_nothing(gpu_worker):
    makers = {"loop": lambda: Engine(tiny_base()), "dynamo": lambda: Engine(tiny_dynamo())}
    lent = RemoteEngines(gpu_worker, "tiny", makers, refuse_empty)
    asked = {name: GenerationRequest(name, tuple(PROMPT), OPTIONS, 6, 3) for name in makers}
    streams = lent.start(asked)
    dynamo, loop = list(streams["dynamo"]), list(streams["loop"])
    assert sum(len(each.tokens) for each in dynamo) == sum(len(each.tokens) for each in loop) == 6


def test_what_an_engine_would_refuse_takes_nobodys_quota(gpu_worker, spaces):
    lent = RemoteEngines(gpu_worker, "tiny", {"dynamo": lambda: Engine(tiny_dynamo())}, refuse_empty)
    with pytest.raises(ValueError, match="input_ids"):
        lent.start({"lane": GenerationRequest("dynamo", (), OPTIONS, 9, 0)})
    assert spaces.asked == []


def test_closing_one_lane_ends_the_run_in_the_worker(gpu_worker):
    closed = []

    class Endless:
        def stream(self, *_, **__):
            try:
                while True:
                    yield StepRecord((1,), 1, 0.1, False, (1.0,))
            finally:
                closed.append(True)

    lent = RemoteEngines(gpu_worker, "tiny", {"loop": Endless, "dynamo": Endless}, refuse_empty)
    running = race(
        lent.start({name: GenerationRequest(name, (1,), OPTIONS, 9, 0) for name in ("loop", "dynamo")})
    )
    assert [next(running)[0] for _ in range(3)] == ["loop", "dynamo", "loop"]
    running.close()
    assert closed == [True, True]


def test_a_shorter_answer_asks_for_less_of_the_quota():
    seconds = quota(60)
    asked = {
        length: {"dynamo": GenerationRequest("dynamo", (1,), OPTIONS, length, 0)} for length in (8, 96, 256)
    }
    estimates = [seconds("lanes", (each,), {}) for each in asked.values()]
    assert estimates[0] < estimates[1] < estimates[2] == 60
    assert seconds("audit", ([1, 2], [3]), {}) == quota(3)("x", (), {}) + 2 == 5


def test_a_refusal_in_the_worker_keeps_its_sentence(gpu_worker):
    def refusing():
        raise ValueError("table: too short")
        yield

    with pytest.raises(ValueError, match="table: "):
        list(gpu_worker.generator("refusing", refusing)())


def test_other_errors_are_the_librarys_to_show(gpu_worker):
    def broken():
        raise RuntimeError("a bug")
        yield

    with pytest.raises(RuntimeError):
        list(gpu_worker.generator("broken", broken)())


def test_closing_a_run_ends_it_in_the_worker(gpu_worker):
    ended = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.append(True)

    run = gpu_worker.generator("endless", endless)()
    assert next(run) == 1
    run.close()
    assert ended == [True]


def test_functions_are_lent_too_and_names_are_taken_once(gpu_worker):
    assert gpu_worker.function("double", lambda x: 2 * x)(21) == 42
    with pytest.raises(ValueError, match="'double'"):
        gpu_worker.function("double", abs)
