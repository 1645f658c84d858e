"""Visitors of the page: real `gradio_client` sessions, each with a question of its own, and what they met.

A question names its seed, so its one right answer is known beforehand from a service without any page
(`reference`). Who is refused by a full queue does as told: waits, and asks again. Times are a visitor's own,
with waiting and network in them.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from gradio_client import Client
from gradio_client.utils import QueueError

from dynamo.sampling.options import SamplingOptions
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.settings import Settings

ROOT = Path(__file__).parents[2]
PROMPTS = (
    "I want to book a table for two in San Jose",
    "Can you find me a place to eat Mexican food in Oakland?",
    "Can you help me find a hotel room in London?",
    "I need a one way flight from Phoenix to Portland.",
    "Please reserve a table for four people at half past six this evening.",
    "I am looking for a three star hotel in Paris with free wifi.",
)
THRESHOLDS = (0.0, 0.3, 0.5, 0.9)
PATIENCE = 120  # seconds for what is sure to come, on a machine that is busy with other things
PORT_IS_TAKEN = "Cannot find empty port"  # Gradio's words
# One for all questions whether a page is up: a client reads the certificates of all authorities first, and
# takes a processor for as long as the page that is starting.
UP = httpx.Client(timeout=PATIENCE)


def client_of(url: str) -> Client:
    """A session of a page that may be slow: by itself the library waits five seconds for an answer."""
    return Client(url, verbose=False, httpx_kwargs={"timeout": PATIENCE})


@dataclass(frozen=True)
class Question:
    prompt: str
    lane: str
    threshold: float
    seed: int
    max_new_tokens: int = 96

    @classmethod
    def number(cls, number: int) -> Question:
        """A different one for each number: the seed is the number."""
        lane = "base" if number % 5 == 4 else "dynamo"
        return cls(PROMPTS[number % len(PROMPTS)], lane, THRESHOLDS[number % len(THRESHOLDS)], number)


def reference(service: PageService, question: Question) -> str:
    """The single user's text."""
    options = SamplingOptions(threshold=question.threshold)
    settings = Settings(options, question.max_new_tokens, question.seed)
    return service.lane_run(Chat(), question.prompt, settings, question.lane).text


@dataclass
class Visit:
    """first, total: seconds from asking to the first and to the last token; model: of model time for the
    answer; ranks: places in the queue as they were told, 0 next; refused: times; error: "" for an answer.
    """

    question: Question
    text: str = ""
    tokens: int = 0
    model: float = 0.0
    first: float = 0.0
    total: float = 0.0
    ranks: list[int] = field(default_factory=list)
    refused: int = 0
    error: str = ""

    @property
    def overtaken(self) -> bool:
        return any(later > earlier for earlier, later in zip(self.ranks, self.ranks[1:], strict=False))


def visit(
    client: Client,
    question: Question,
    tick: float = 0.02,
    leave_after: int | None = None,
    patience: float = 900,
) -> Visit:
    """Ask once and look until the answer is there; leave_after: cancel after so many outputs."""
    made = Visit(question)
    begun = time.perf_counter()
    while True:
        job = client.submit(
            question.prompt,
            lane=question.lane,
            threshold=question.threshold,
            max_new_tokens=question.max_new_tokens,
            seed=question.seed,
            api_name="/generate",
        )
        while not job.done():
            if time.perf_counter() - begun > patience:
                job.cancel()
                made.error = f"no answer in {patience:g} s"
                return made
            _look(job, made, begun)
            if leave_after is not None and len(job.outputs()) >= leave_after:
                job.cancel()
                return made
            time.sleep(tick)
        _look(job, made, begun)
        try:
            told = job.result()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 429:
                raise
            made.refused += 1
            made.ranks.clear()
            time.sleep(float(error.response.headers["retry-after"]))
            continue
        except QueueError:  # Gradio's own word for the same
            made.refused += 1
            made.ranks.clear()
            time.sleep(15.0)
            continue
        made.total = time.perf_counter() - begun
        made.first = made.first or made.total
        made.text, made.tokens, made.model = told["text"], told["tokens"], told["seconds"]
        return made


def _look(job, made: Visit, begun: float) -> None:
    if not made.first and job.outputs():
        made.first = time.perf_counter() - begun
    rank = job.communicator.job.latest_status.rank
    if rank is not None and (not made.ranks or made.ranks[-1] != rank):
        made.ranks.append(rank)


def visits_at_once(
    url: str,
    questions: Sequence[Question],
    visitors: int,
    tick: float = 0.02,
    first: Callable[[], None] = lambda: None,
) -> tuple[list[Visit], float]:
    """All questions shared out over so many visitors who start together, after `first`; and the seconds that
    it took them."""
    clients = [client_of(url) for _ in range(visitors)]
    ready = threading.Barrier(visitors + 1)

    def come(number: int) -> list[Visit]:
        ready.wait(2 * PATIENCE)
        return [visit(clients[number], question, tick) for question in questions[number::visitors]]

    try:
        first()
        with ThreadPoolExecutor(visitors) as pool:
            coming = [pool.submit(come, number) for number in range(visitors)]
            ready.wait(2 * PATIENCE)
            begun = time.perf_counter()
            made = [each for come_back in coming for each in come_back.result()]
        return made, time.perf_counter() - begun
    finally:
        for client in clients:
            client.close()


# ---- the server, a process of its own


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen

    @property
    def megabytes(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    @property
    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


@contextmanager
def serving(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path = ROOT, wait: float = 300
) -> Iterator[Server]:
    """A page started by `command` in a folder, once it answers; it is stopped at the end."""
    url, process = _started(command, log, environment, folder)
    try:
        until(lambda: _answers(url) or process.poll() is not None, wait)
        if process.poll() is not None and PORT_IS_TAKEN in log.read_text():
            url, process = _started(command, log, environment, folder)  # on another one
            until(lambda: _answers(url) or process.poll() is not None, wait)
        if process.poll() is not None:
            raise RuntimeError(f"the page did not start:\n{log.read_text()}")
        yield Server(url, process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _started(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
) -> tuple[str, subprocess.Popen]:
    """At a port that was free a moment ago: somebody else may have taken it since."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as told:
        process = subprocess.Popen(command, cwd=folder, env={**environment, **own}, stdout=told, stderr=told)
    return f"http://127.0.0.1:{port}/", process


def app(log: Path, **environment: str) -> contextmanager[Server]:
    """`python app.py` as it is shipped, without votes."""
    own = {"DYNAMO_VOTES": "", "DYNAMO_MODEL": "embedded", **environment}
    return serving([sys.executable, "app.py"], log, {**os.environ, **own})


def _answers(url: str) -> bool:
    try:
        return UP.get(f"{url}config").status_code == 200
    except httpx.HTTPError:
        return False


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something that is to come about. Raises TimeoutError if it does not."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come about in {seconds:g} s")
        time.sleep(0.05)
