"""How often one may ask and how many may wait, by page and program: refusals, and whom they are for."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from fakes import scripted_pair
from limited import LIMITS, LimitedPage, served
from visitors import PATIENCE, until

from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import SamplingOptions, Settings
from dynamo.ui.server.limits import (
    FIRST_WAIT,
    LONGEST_WAIT,
    MOST_VISITORS,
    RECENT_RUNS,
    SHORTEST_WAIT,
    Pace,
    Rates,
    visitor_of,
)

ROOM = 1000  # in a queue that is not what a test is about


@pytest.fixture(scope="module")
def clock():
    return [0.0]


@pytest.fixture(scope="module")
def page(clock):
    """With room for everybody; its time is the `clock`'s."""
    with served(LIMITS, ROOM, lambda: clock[0]) as page:
        yield page


@pytest.fixture(scope="module")
def narrow():
    """With room for two."""
    with served(LIMITS, 2, lambda: 0.0) as page:
        yield page


# ---- how often


def test_a_visitor_has_a_minutes_requests_at_once_and_then_one_at_a_time():
    now = [0.0]
    rates = Rates(6, clock=lambda: now[0])
    assert [rates.wait("one") for _ in range(6)] == [0.0] * 6
    assert rates.wait("one") == pytest.approx(10) and rates.wait("two") == 0
    now[0] = 4
    assert rates.wait("one") == pytest.approx(6)
    now[0] = 10.1
    assert [rates.wait("one") == 0 for _ in range(2)] == [True, False]
    now[0] = 10_000
    assert [rates.wait("one") == 0 for _ in range(7)] == [True] * 6 + [False]


def test_asking_while_refused_does_not_prolong_the_wait():
    now = [0.0]
    rates = Rates(1, clock=lambda: now[0])
    rates.wait("one")
    for now[0] in range(1, 60):
        assert rates.wait("one") == pytest.approx(60 - now[0])
    now[0] = 60
    assert rates.wait("one") == 0


def test_no_number_of_visitors_takes_memory_without_bound():
    rates = Rates(6, clock=lambda: 0.0)
    for number in range(MOST_VISITORS + 50):
        rates.wait(str(number))
    assert len(rates) == MOST_VISITORS


@pytest.mark.parametrize(
    ("client", "forwarded", "visitor"),
    [
        ("10.0.0.3", "203.0.113.9", "203.0.113.9"),  # a documentation address is not global: the peer stands
        ("10.0.0.3", "8.8.8.8", "8.8.8.8"),
        ("10.0.0.3", "1.1.1.1, 8.8.8.8", "8.8.8.8"),  # the visitor put the first there
        ("10.0.0.3", "8.8.8.8, 10.1.2.3", "8.8.8.8"),  # a second proxy inside
        ("10.0.0.3", "nonsense, <b>", "10.0.0.3"),
        ("10.0.0.3", "", "10.0.0.3"),
        ("10.0.0.3", "2001:4860:4860::8888", "2001:4860:4860::/64"),
        ("10.0.0.3", "1.1.1.1, 8.8.8.8:5432", "8.8.8.8"),
        ("10.0.0.3", "1.1.1.1, [2001:4860:4860::8888]:5432", "2001:4860:4860::/64"),
        ("10.0.0.3", "::ffff:8.8.8.8", "8.8.8.8"),
        ("10.0.0.3", "1.1.1.1, unknown", "10.0.0.3"),  # what stands before it may be the visitor's
        ("9.9.9.9", "1.1.1.1", "9.9.9.9"),  # no proxy of ours: it came past it
    ],
)
def test_a_visitor_behind_a_proxy_is_the_last_public_address(client, forwarded, visitor):
    scope = {
        "client": (client, 1),
        "headers": [(b"x-forwarded-for", forwarded.encode())] if forwarded else [],
    }
    expected = visitor if visitor != "203.0.113.9" else client
    assert visitor_of(scope, behind_proxy=True) == expected
    assert visitor_of(scope, behind_proxy=False) == client


def test_too_many_requests_of_one_visitor_are_refused_and_anothers_are_not(page, clock):
    for other in ("9.9.9.1", "9.9.9.2"):
        clock[0] += 60  # after a minute as many again
        answers = [page.ask("8.8.4.4", prompt=" ") for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
        refused = answers[-1]
        assert refused.headers["retry-after"] == "10"
        message = refused.json()["detail"]
        assert message == "At most 6 requests a minute are answered here; ask again in 10 s."
        assert page.ask(other).status_code == 200


def test_without_a_proxy_a_forged_header_makes_nobody_another_visitor(monkeypatch):
    """Uvicorn believes the header of whoever connects from this machine, or from where a variable says."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with served(replace(LIMITS, behind_proxy=False), ROOM, lambda: 0.0) as page:
        answers = [page.ask(f"8.8.{number}.8", prompt=" ") for number in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
    assert answers[-1].json()["detail"].startswith("At most 6 requests a minute")


def test_behind_a_proxy_a_forged_hop_makes_nobody_another_visitor(page):
    answers = [page.ask(f"1.1.{number}.1, 5.5.5.5", prompt=" ") for number in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
    assert answers[-1].json()["detail"].startswith("At most 6 requests a minute")
    assert page.ask("1.1.0.1, 6.6.6.6", prompt=" ").status_code == 200


# ---- how many wait


def test_a_refusal_says_how_long_the_queue_takes():
    """Whoever is refused reads how long the queue takes at the pace of the last runs."""
    now = [0.0]
    pace = Pace(clock=lambda: now[0])

    def run(seconds):
        with pace.run():
            now[0] += seconds

    assert pace.wait(20) == FIRST_WAIT
    run(3)
    run(4)
    assert [pace.wait(waiting) for waiting in (2, 20)] == [7, 70]
    with pytest.raises(RuntimeError), pace.run():
        now[0] += 5
        raise RuntimeError("stopped")
    assert pace.wait(20) == 80
    for _ in range(RECENT_RUNS):
        run(0.01)
    assert pace.wait(20) == SHORTEST_WAIT
    for _ in range(RECENT_RUNS):
        run(600)
    assert pace.wait(20) == LONGEST_WAIT


def test_runs_of_the_page_are_what_its_pace_is_measured_by():
    service = PageService(scripted_pair(seconds=0.001))
    assert service.pace.wait(1000) == FIRST_WAIT
    for _ in service.answer(Chat(), "hello", Settings(SamplingOptions(), 8, 0)):
        pass
    assert service.pace.wait(0) == SHORTEST_WAIT


def test_a_full_queue_refuses_with_its_length_and_serves_those_who_wait(narrow):
    until(narrow.nobody_waits, PATIENCE)
    model = narrow.pair.engines.by_name["loop"]
    model.go.clear()  # the first is under way for as long as the others ask
    try:
        answers = [narrow.ask("8.8.8.0", tokens=64)]
        until(narrow.nobody_waits, PATIENCE)
        answers += [narrow.ask(f"8.8.8.{number}", tokens=64) for number in range(1, 6)]
    finally:
        model.go.set()
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 3
    for answer in answers[3:]:
        assert answer.json()["detail"].startswith("The queue is full: 2 requests are waiting already")
        assert SHORTEST_WAIT <= int(answer.headers["retry-after"]) <= LONGEST_WAIT
        assert answer.json()["detail"].endswith(f"ask again in {answer.headers['retry-after']} s.")
    for answer in answers[:3]:
        assert '"end": "length"' in narrow.answer_of(answer).split("event: complete")[1]


def unfinished(page: LimitedPage, visitor: str) -> socket.socket:
    """A request to join the queue that says how long it is and never comes."""
    address = urlsplit(page.api)
    line = socket.create_connection((address.hostname, address.port), timeout=PATIENCE)
    line.sendall(
        f"POST {address.path}queue/join HTTP/1.1\r\nHost: {address.netloc}\r\nX-Forwarded-For: {visitor}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
    )
    return line


def everything(line: socket.socket) -> str:
    """What comes until the answer's last byte: head and body need not arrive together."""
    with line.makefile("rb") as answer:
        head = b"".join(iter(answer.readline, b"\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])
        return head + answer.read(length).decode()


def test_requests_that_never_end_take_nobodys_place(narrow, monkeypatch):
    """Requests that never end take nobodys place in the queue and are ended."""
    until(narrow.nobody_waits, PATIENCE)
    with ExitStack() as lines:
        for number in range(4):  # twice what may wait
            lines.enter_context(unfinished(narrow, f"7.7.7.{number}"))
        assert narrow.ask("7.7.6.1").status_code == 200
        monkeypatch.setattr("dynamo.ui.server.limits.LONGEST_READING", 0.2)
        message = everything(lines.enter_context(unfinished(narrow, "7.7.7.9")))
    assert message.startswith("HTTP/1.1 408") and "within 0.2 s" in message
