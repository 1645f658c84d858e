"""The engines of this process, as the page starts them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.ui.server.engines import GenerationRequest, LocalEngines


@pytest.fixture
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Counting:
    """Passes with the number of threads as their token, twice as long with two."""

    device = torch.device("cpu")

    def stream(self, input_ids, options, max_new_tokens=128, seed=0, stop=()):
        for number in range(max_new_tokens):
            count = torch.get_num_threads()
            yield StepRecord((count,), 1, 0.001 * count, prefill=number == 0)


def test_settled_threads_hold_in_whichever_thread_a_pass_is_asked_for(as_before):
    """torch's number is each thread's own: settled on one, a page went on with two in other threads."""
    engines = LocalEngines({"dynamo": Counting()})
    request = GenerationRequest("dynamo", (5,), SamplingOptions(), 8, 0)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread in (one, other):
            thread.submit(torch.set_num_threads, 2).result()
        passes = engines.start({"lane": request})["lane"]
        assert one.submit(next, passes).result().tokens == (2,), "nothing is settled yet"
        one.submit(engines.settle, 2).result()
        assert [thread.submit(next, passes).result().tokens for thread in (one, other)] == [(1,), (1,)]
