"""What `spaces_config.yaml` limits: each limit named with its remedy, by page and program, off at home."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import gradio as gr
import httpx
import pytest
from fakes import scripted_contenders
from gradio_client import Client
from gradio_client.exceptions import AppError

from dynamo.spaces import read_config
from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.ui import Offer, build_demo, launch_options, serve
from dynamo.ui.api import functions
from dynamo.ui.chat import Chat
from dynamo.ui.host import Host
from dynamo.ui.limits import (
    FIRST_WAIT,
    LARGEST_REQUEST,
    LONGEST_WAIT,
    MOST_VISITORS,
    RECENT_RUNS,
    SHORTEST_WAIT,
    Pace,
    Rates,
    visitor_of,
)
from dynamo.ui.settings import SamplingOptions, Settings

LIMITS = Limits(prompt_characters=20, answer_tokens=64, requests_per_minute=6, upload_mb=1, behind_proxy=True)

CONTENDERS = scripted_contenders(seconds=0.02, sleep=True, repeat=4)
PATIENCE = 60  # seconds, for a machine that is busy with other things


@contextmanager
def served(limits: Limits):
    offer = Offer(limits=limits, queue_size=2)
    demo = build_demo(CONTENDERS, offer=offer)
    options = launch_options(limits)
    _, url, _ = serve(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
    yield f"{url}gradio_api/"
    demo.close()


@pytest.fixture(scope="module")
def page():
    with served(LIMITS) as page:
        yield page


def ask(page: str, visitor: str, prompt: str = "hello", tokens: int = 1) -> httpx.Response:
    """One request by the REST interface, as a proxy hands on a visitor's."""
    data = [prompt, "base", 0.5, 1.0, 0.7, 50, 1.1, 3, False, tokens, 0]
    return httpx.post(
        f"{page}call/generate", json={"data": data}, headers={"X-Forwarded-For": visitor}, timeout=PATIENCE
    )


def answer_of(page: str, response: httpx.Response) -> str:
    """What the stream of a request says last."""
    return httpx.get(f"{page}call/generate/{response.json()['event_id']}", timeout=PATIENCE).text


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
    ("client", "told", "visitor"),
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
def test_a_visitor_behind_a_proxy_is_the_last_public_address(client, told, visitor):
    scope = {"client": (client, 1), "headers": [(b"x-forwarded-for", told.encode())] if told else []}
    expected = visitor if visitor != "203.0.113.9" else client
    assert visitor_of(scope, behind_proxy=True) == expected
    assert visitor_of(scope, behind_proxy=False) == client


def test_too_many_requests_of_one_visitor_are_refused_and_anothers_are_not(page):
    answers = [ask(page, "8.8.4.4", prompt=" ")]
    while answers[-1].status_code == 200 and len(answers) < 30:  # one more is allowed every ten seconds
        answers.append(ask(page, "8.8.4.4", prompt=" "))
    refused = answers[-1]
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) <= 10
    told = refused.json()["detail"]
    assert told.startswith(("At most 6 requests a minute are answered here; ask again in", "The queue is"))
    assert ask(page, "9.9.9.9").status_code == 200


def test_without_a_proxy_a_forged_header_makes_nobody_another_visitor(monkeypatch):
    """Uvicorn believes the header of whoever connects from this machine, or from where a variable says."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with served(replace(LIMITS, behind_proxy=False)) as page:
        answers = [ask(page, f"8.8.{number}.8", prompt=" ") for number in range(8)]
    told = [answer.json().get("detail", "") for answer in answers]
    assert any(each.startswith("At most 6 requests a minute") for each in told)


def test_behind_a_proxy_a_forged_hop_makes_nobody_another_visitor(page):
    answers = [ask(page, f"1.1.{number}.1, 5.5.5.5", prompt=" ") for number in range(8)]
    told = [answer.json().get("detail", "") for answer in answers]
    assert any(each.startswith("At most 6 requests a minute") for each in told)
    assert not ask(page, "1.1.0.1, 6.6.6.6", prompt=" ").text.startswith('{"detail":"At most')


# ---- how many wait


def test_whoever_is_refused_is_told_how_long_the_queue_takes_at_the_pace_of_the_last_runs():
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
    host = Host(scripted_contenders(seconds=0.001))
    assert host.pace.wait(1000) == FIRST_WAIT
    for _ in host.answer(Chat(), "hello", Settings(SamplingOptions(), 8, 0)):
        pass
    assert host.pace.wait(0) == SHORTEST_WAIT


def test_a_full_queue_refuses_with_its_length_and_serves_those_who_wait(page):
    visitors = [f"8.8.8.{number}" for number in range(6)]
    CONTENDERS.opponents["loop"].go.clear()  # the first is under way for as long as the others ask
    try:
        answers = [ask(page, visitor, tokens=64) for visitor in visitors]
    finally:
        CONTENDERS.opponents["loop"].go.set()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 2 <= len(refused) <= 4 and answers[0].status_code == 200
    for answer in refused:
        assert answer.json()["detail"].startswith("The queue is full: 2 requests are waiting already")
        assert SHORTEST_WAIT <= int(answer.headers["retry-after"]) <= LONGEST_WAIT
        assert answer.json()["detail"].endswith(f"ask again in {answer.headers['retry-after']} s.")
    for answer in answers:
        if answer.status_code == 200:
            assert '"end": "length"' in answer_of(page, answer).split("event: complete")[1]


def unfinished(page: str, visitor: str) -> socket.socket:
    """A request to join the queue that says how long it is and never comes."""
    address = urlsplit(page)
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


def test_requests_that_never_end_take_nobodys_place_in_the_queue_and_are_ended(page, monkeypatch):
    with ExitStack() as lines:
        for number in range(4):  # twice what may wait
            lines.enter_context(unfinished(page, f"7.7.7.{number}"))
        assert ask(page, "7.7.6.1").status_code == 200
        monkeypatch.setattr("dynamo.ui.limits.LONGEST_READING", 0.2)
        told = everything(lines.enter_context(unfinished(page, "7.7.7.9")))
    assert told.startswith("HTTP/1.1 408") and "not here within 0.2 s" in told


# ---- how much


def test_a_long_prompt_and_a_long_answer_are_refused_with_their_limit(page):
    generate = functions(Host(scripted_contenders(), limits=LIMITS))[0]
    with pytest.raises(gr.Error, match=r"prompt: it has 21 characters and at most 20 are read here; short"):
        next(generate("a" * 21, max_new_tokens=8))
    with pytest.raises(gr.Error, match="max_new_tokens: expected 1 to 64 here, got 65"):
        next(generate("a" * 20, max_new_tokens=65))
    client = Client(page.removesuffix("gradio_api/"), verbose=False)
    with pytest.raises(AppError, match="at most 20 are read here"):
        client.predict("a" * 21, api_name="/generate")


def test_a_huge_request_is_refused_before_anything_reads_it(page):
    answer = httpx.post(f"{page}queue/join", content=b" " * (LARGEST_REQUEST + 1), timeout=PATIENCE)
    assert answer.status_code == 413 and "larger than 4,000,000 bytes" in answer.json()["detail"]

    def endless():
        for _ in range(100):
            yield b" " * 100_000

    assert httpx.post(f"{page}queue/join", content=endless(), timeout=PATIENCE).status_code == 413


def test_a_file_above_the_limit_is_not_taken(page, tmp_path):
    too_large = {"files": ("run.ndjson", b"x" * 1_000_001)}
    answer = httpx.post(f"{page}upload", files=too_large, timeout=PATIENCE)
    assert answer.status_code == 413
    path = tmp_path / "run.ndjson"
    path.write_bytes(b"x" * 1_000_001)
    with pytest.raises(ValueError, match="larger than 1,000,000 bytes"):
        Host(scripted_contenders(), limits=LIMITS).load(path)


def test_a_program_cannot_pass_by_the_queue(page):
    answer = httpx.post(
        f"{page}run/generate", json={"data": ["hello"]}, headers={"X-Forwarded-For": "4.4.4.4"}
    )
    assert answer.status_code == 404 and "join the queue" in answer.json()["detail"]


def test_the_slider_ends_where_the_limit_does():
    config = build_demo(scripted_contenders(), offer=Offer(limits=LIMITS)).get_config_file()
    sliders = [part["props"] for part in config["components"] if part["type"] == "slider"]
    (longest,) = (each for each in sliders if each["label"] == "Longest answer")
    assert (longest["maximum"], longest["value"]) == (64, 64)


# ---- the file


def written(tmp_path, limits: str):
    path = tmp_path / "spaces_config.yaml"
    path.write_text(f"models: [m]\napp: {{queue_size: 3, votes: v, votes_on_space: '', limits: {limits}}}\n")
    return path


def test_limits_hold_on_a_space_and_not_at_home(tmp_path):
    path = written(tmp_path, "{prompt_characters: 9, requests_per_minute: 4}")
    assert read_config(path, {}).limits == UNLIMITED
    expected = Limits(prompt_characters=9, requests_per_minute=4, behind_proxy=True)
    assert read_config(path, {"SPACE_ID": "someone/dynamo"}).limits == expected
    assert read_config(path, {"DYNAMO_LIMITS": "on", "DYNAMO_QUEUE": "64"}).queue_size == 64
    assert read_config(path, {"DYNAMO_LIMITS": "proxy"}).limits == expected
    assert read_config(path, {"DYNAMO_LIMITS": "on", "SPACE_ID": "someone/dynamo"}).limits == expected
    assert read_config(path, {"DYNAMO_LIMITS": "on"}).limits == replace(expected, behind_proxy=False)


@pytest.mark.parametrize(
    ("limits", "environment", "sentence"),
    [
        ("{prompt: 9}", {}, "app.limits.prompt: expected one of prompt_characters, answer_tokens"),
        ("{upload_mb: 0}", {}, "app.limits.upload_mb: expected a whole number from 1, got 0"),
        ("{upload_mb: yes}", {}, "app.limits.upload_mb: expected a whole number from 1, got True"),
        ("[]", {}, "limits: expected dict"),
        ("{}", {"DYNAMO_QUEUE": "many"}, "DYNAMO_QUEUE: expected a whole number"),
        ("{}", {"DYNAMO_LIMITS": "1"}, "DYNAMO_LIMITS: expected on, proxy or off"),
    ],
)
def test_a_mistake_in_the_limits_is_named(tmp_path, limits, environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(written(tmp_path, limits), environment)
