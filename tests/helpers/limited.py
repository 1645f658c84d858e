"""A page with limits, served, and whoever asks it by the REST interface: for the tests of these limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import gradio as gr
import httpx
import pytest
from fakes import scripted_pair
from visitors import PATIENCE

from dynamo.spaces.limits import Limits
from dynamo.ui import ModelPair, build_demo, launch_options, serve
from dynamo.ui.server.limits import Rates

LIMITS = Limits(prompt_characters=20, answer_tokens=64, requests_per_minute=6, upload_mb=1, behind_proxy=True)


@dataclass(frozen=True)
class LimitedPage:
    url: str
    demo: gr.Blocks
    pair: ModelPair

    @property
    def api(self) -> str:
        return f"{self.url}gradio_api/"

    def nobody_waits(self) -> bool:
        return len(self.demo._queue) == 0

    def ask(self, visitor: str, prompt: str = "hello", tokens: int = 1) -> httpx.Response:
        """One request, as a proxy hands on a visitor's."""
        data = [prompt, "base", 0.5, 1.0, 0.7, 50, 1.1, 3, False, tokens, 0, []]
        return httpx.post(
            f"{self.api}call/generate",
            json={"data": data}, headers={"X-Forwarded-For": visitor}, timeout=PATIENCE,
        )  # fmt: skip

    def answer_of(self, response: httpx.Response) -> str:
        """What the stream of a request says last."""
        event = response.json()["event_id"]
        return httpx.get(f"{self.api}call/generate/{event}", timeout=PATIENCE).text


@contextmanager
def served(limits: Limits, queue_size: int, clock: Callable[[], float]) -> Iterator[LimitedPage]:
    """clock: by which a visitor's requests are counted; one that stands still lets no minute pass."""
    pair = scripted_pair(seconds=0.02, sleep=True, repeat=4)
    demo = build_demo(pair, limits=limits, queue_size=queue_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo.ui.server.limits.Rates", partial(Rates, clock=clock))
        _, url, _ = serve(
            demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(limits)
        )
        yield LimitedPage(url, demo, pair)
        demo.close()
