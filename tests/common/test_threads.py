import pytest
import torch
from conftest import tiny_dynamo

from dynamo import Engine
from dynamo.common import threads
from dynamo.sampling.records import StepRecord


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Scripted:
    """Passes that take as long as `seconds` says for the threads that are set; streams are logged."""

    def __init__(self, seconds, device="cpu"):
        self.device, self._seconds, self.ran = torch.device(device), seconds, []

    def stream(self, prompt, options, max_new_tokens, seed):
        count = torch.get_num_threads()
        self.ran.append(count)
        yield StepRecord((5,), 1, 0.05, prefill=True)
        for _ in range(3):
            yield StepRecord((5,), 1, self._seconds[count])


def test_fewest_threads_that_are_nearly_fastest_are_chosen():
    assert (
        threads.candidates(6) == [1, 2, 4, 6]
        and threads.candidates(4) == [1, 2, 4]
        and threads.candidates(1) == [1]
    )
    assert threads.choose({4: 1.0, 2: 1.04, 1: 1.06}) == 2
    assert threads.choose({4: 2.0, 1: 1.0}) == 1
    assert threads.choose({4: 1.0, 2: 1.2, 1: 1.9}) == 4


@pytest.mark.parametrize(
    "seconds, best", [({3: 0.002, 2: 0.001, 1: 0.003}, 2), ({3: 1e-3, 2: 2e-3, 1: 4e-3}, 3)]
)
def test_the_count_whose_passes_are_fastest_is_set(seconds, best):
    torch.set_num_threads(3)
    engine = Scripted(seconds)
    assert threads.settle_threads(engine, seconds=0.0) == torch.get_num_threads() == best
    assert engine.ran == [1, 2, 3, 1, 2, 3], "a round to warm up, a round that counts"


def test_slow_passes_a_gpu_and_one_thread_are_left_as_they_are():
    torch.set_num_threads(2)
    slow = Scripted({2: 0.2, 1: 0.1})
    assert threads.settle_threads(slow) == 2 and slow.ran == [1], "a large model is not measured any further"
    crowded = Scripted({2: 0.2, 1: 0.01})
    assert threads.settle_threads(crowded, seconds=0.0) == 1, "two wait for each other, the model is small"
    torch.set_num_threads(2)
    gpu = Scripted({}, device="cuda")
    assert threads.settle_threads(gpu) == 2 and not gpu.ran
    torch.set_num_threads(1)
    lone = Scripted({})
    assert threads.settle_threads(lone) == 1 and not lone.ran


def test_a_number_overrides_and_anything_else_is_refused():
    engine = Scripted({})
    assert threads.settle_threads(engine, "3") == torch.get_num_threads() == 3 and not engine.ran
    for asked in ("0", "-1", "many", "1.5", 0):
        with pytest.raises(ValueError, match="threads: "):
            threads.settle_threads(engine, asked)


def test_an_engine_can_be_measured_even_if_its_texts_end_at_once(monkeypatch):
    monkeypatch.setattr(threads, "SLOW_PASS", 1e9)  # however long a busy machine takes over a prompt
    model = tiny_dynamo()
    model.generation_config.eos_token_id = list(range(300))
    torch.set_num_threads(2)
    assert threads.settle_threads(Engine(model), seconds=0.01) == 2
    model.generation_config.eos_token_id = None
    assert threads.settle_threads(Engine(model), seconds=0.01) in (1, 2)
