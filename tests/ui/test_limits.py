"""What `spaces_config.yaml` limits: each limit named with its remedy, by page and program, off at home.

How often one may ask and how many may wait: `test_rates`.
"""

from __future__ import annotations

from dataclasses import replace

import gradio as gr
import httpx
import pytest
from fakes import scripted_pair
from gradio_client.exceptions import AppError
from limited import LIMITS, served
from visitors import PATIENCE, client_of

from dynamo.spaces import read_config
from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.ui import build_demo
from dynamo.ui.api import Programs
from dynamo.ui.compare.service import PageService
from dynamo.ui.server.limits import LARGEST_REQUEST


@pytest.fixture(scope="module")
def page():
    with served(LIMITS, 2, lambda: 0.0) as page:
        yield page


# ---- how much


def test_a_long_prompt_and_a_long_answer_are_refused_with_their_limit(page):
    generate = Programs(PageService(scripted_pair(), limits=LIMITS)).generate
    with pytest.raises(gr.Error, match="prompt: "):
        next(generate("a" * 21, max_new_tokens=8))
    with pytest.raises(gr.Error, match="max_new_tokens: "):
        next(generate("a" * 20, max_new_tokens=65))
    client = client_of(page.url)
    with pytest.raises(AppError, match="at most 20 are read here"):
        client.predict("a" * 21, api_name="/generate")


def test_a_huge_request_is_refused_before_anything_reads_it(page):
    answer = httpx.post(f"{page.api}queue/join", content=b" " * (LARGEST_REQUEST + 1), timeout=PATIENCE)
    assert answer.status_code == 413 and "larger than 4,000,000 bytes" in answer.json()["detail"]

    def endless():
        for _ in range(100):
            yield b" " * 100_000

    assert httpx.post(f"{page.api}queue/join", content=endless(), timeout=PATIENCE).status_code == 413


def test_a_file_above_the_limit_is_not_taken(page, tmp_path):
    too_large = {"files": ("run.ndjson", b"x" * 1_000_001)}
    answer = httpx.post(f"{page.api}upload", files=too_large, timeout=PATIENCE)
    assert answer.status_code == 413
    path = tmp_path / "run.ndjson"
    path.write_bytes(b"x" * 1_000_001)
    with pytest.raises(ValueError, match="larger than 1,000,000 bytes"):
        PageService(scripted_pair(), limits=LIMITS).load(path)


def test_a_program_cannot_pass_by_the_queue(page):
    answer = httpx.post(
        f"{page.api}run/generate",
        json={"data": ["hello"]}, headers={"X-Forwarded-For": "4.4.4.4"}, timeout=PATIENCE,
    )  # fmt: skip
    assert answer.status_code == 404 and "join the queue" in answer.json()["detail"]


def test_the_slider_ends_where_the_limit_does():
    config = build_demo(scripted_pair(), limits=LIMITS).get_config_file()
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
        ("[]", {}, "limits: "),
        ("{}", {"DYNAMO_QUEUE": "many"}, "DYNAMO_QUEUE: expected a whole number"),
        ("{}", {"DYNAMO_LIMITS": "1"}, "DYNAMO_LIMITS: expected on, proxy or off"),
    ],
)
def test_a_mistake_in_the_limits_is_named(tmp_path, limits, environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(written(tmp_path, limits), environment)
