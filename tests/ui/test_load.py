"""Several visitors at once, against `python app.py` in a process of its own.

`make bench-load` is the long form, with times; these are about answers, order and what is left behind.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.request import urlopen

import pytest
from visitors import PATIENCE, Question, app, client_of, reference, until, visit, visits_at_once

from dynamo import loading
from dynamo.ui import ModelPair
from dynamo.ui.api import MOST_THRESHOLDS
from dynamo.ui.compare.service import PageService

pytestmark = pytest.mark.timeout(900)  # real answers, for up to 8 at once


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with app(tmp_path_factory.mktemp("load") / "log", OMP_NUM_THREADS="1") as server:
        yield server


@pytest.fixture(scope="module")
def service():
    return PageService(ModelPair.from_pair(loading.load("embedded", device="cpu")))


def test_four_visitors_get_the_answers_to_their_own_questions(server, service):
    questions = [Question.number(number) for number in range(8)]
    made, _ = visits_at_once(server.url, questions, 4)
    assert {each.question for each in made} == set(questions)
    for each in made:
        assert each.text == reference(service, each.question), each.question
        assert 0 < each.first <= each.total


def test_eight_visitors_wait_in_their_order_and_are_told_their_place(server, service):
    """Somebody came before them and takes his time: else the first might be answered before the last came."""
    before = client_of(server.url)
    sweeps = []

    def come_before_them():
        sweeps.append(before.submit("hello", [1.0] * MOST_THRESHOLDS, api_name="/threshold_sweep"))
        until(lambda: len(sweeps[0].outputs()) > 0, PATIENCE)

    questions = [Question.number(100 + number) for number in range(8)]
    made, _ = visits_at_once(server.url, questions, 8, first=come_before_them)
    assert len(sweeps[0].result()) == MOST_THRESHOLDS
    before.close()
    for each in made:
        assert each.text == reference(service, each.question), each.question
        assert not each.overtaken, each.ranks
    assert len({each.text for each in made}) > 6  # the answers differ, so a mix-up would show
    waited = [each for each in made if each.ranks]
    assert len(waited) >= 4 and max(each.ranks[0] for each in waited) >= 4


def test_visitors_leave_neither_threads_nor_memory_behind(server):
    def come(number: int, leave_after: int | None = None) -> None:
        client = client_of(server.url)
        visit(client, replace(Question.number(number), max_new_tokens=24), leave_after=leave_after)
        client.close()

    for number in range(3):  # what the first visitors of all bring to life
        come(number)
    threads, megabytes = server.threads, server.megabytes
    leavers = 4
    for number in range(2 * leavers):
        come(number, leave_after=1 if number % 2 == 0 else None)

    def few_threads() -> bool:
        """The server's pool drops idle threads when it is asked again, and may keep one more than before."""
        urlopen(server.url).close()
        return server.threads < threads + leavers

    until(few_threads, PATIENCE)
    assert server.megabytes < megabytes + 40
