"""The page asked by a stranger: functions for programs, handlers, what it serves, what it writes down."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import gradio as gr
import pytest
from fakes import scripted_pair
from hostile import BRIEF, TEXTS, VALUES, refusal, texts, values
from hypothesis import given
from hypothesis import strategies as st
from page_handlers import SETTINGS, handlers
from visitors import PATIENCE, client_of

from dynamo.trace.ndjson import read_runs
from dynamo.ui import build_demo, launch_options
from dynamo.ui.api import Programs
from dynamo.ui.compare.service import PageService
from dynamo.ui.components import served_passes, served_split, served_trace

HOST = PageService(scripted_pair())
FUNCTIONS = {function.__name__: function for function in Programs(HOST).functions()}
OPTIONS = ("threshold", "mask_strength", "temperature", "top_k", "repetition_penalty", "max_order", "exact",
           "max_new_tokens", "seed", "lane")  # fmt: skip


def message_of(act) -> str | None:
    """What the page would say of `act`, None where it succeeds: a mistake named, never a failed model."""

    def plainly():
        try:
            act()
        except gr.Error as error:
            raise ValueError(error.message) from error

    said = refusal(plainly)
    assert said is None or "The model failed" not in said, said
    assert said is None or "<" not in said, said
    return said


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("prompt", TEXTS, ids=lambda text: repr(text)[:24])
def test_any_prompt_is_answered_or_refused_and_can_be_sent(name, prompt):
    def ask():
        for result in FUNCTIONS[name](prompt):
            json.dumps(result, allow_nan=False, ensure_ascii=False).encode()

    message_of(ask)


@pytest.mark.parametrize("option", OPTIONS)
def test_any_option_of_generate_is_taken_or_named(option):
    for value in VALUES:
        said = message_of(lambda value=value: list(FUNCTIONS["generate"]("hello", **{option: value})))
        assert said is None or said.startswith(f"{option}: "), said


@BRIEF
@given(
    st.sampled_from(list(FUNCTIONS)),
    texts | values,
    st.dictionaries(st.sampled_from(OPTIONS[:1] + OPTIONS[7:9]), values),
)
def test_no_call_of_a_program_ends_otherwise(name, prompt, options):
    if name == "threshold_sweep" and "threshold" in options:
        options["thresholds"] = options.pop("threshold")
    message_of(lambda: list(FUNCTIONS[name](prompt, **options)))


def test_thresholds_that_are_no_list_are_refused():
    for value in VALUES:
        message_of(lambda value=value: list(FUNCTIONS["threshold_sweep"]("hello", value)))


@pytest.mark.parametrize("name", SETTINGS)
def test_any_control_may_send_anything(name):
    wired = handlers()
    for value in VALUES:
        sent = {**SETTINGS, name: value}.values()
        message_of(lambda sent=sent: list(wired.send("hello", False, False, "loop", "", "", *sent)))


@BRIEF
@given(st.one_of(texts, values), st.one_of(texts, values), st.one_of(texts, values))
def test_any_chat_and_opponent_may_come_back(base, dynamo, opponent):
    wired = handlers()
    message_of(lambda: list(wired.send("hello", True, False, opponent, base, dynamo, *SETTINGS.values())))
    message_of(lambda: list(wired.retry(opponent, base, dynamo, *SETTINGS.values())))
    message_of(lambda: list(wired.decode_again("loop", base, dynamo, *SETTINGS.values())))
    message_of(lambda: wired.edit(base, dynamo))
    message_of(lambda: wired.timeline_chart(dynamo))
    list(wired.look_again(base, dynamo))


def test_a_chat_with_made_up_options_has_its_chart_or_a_sentence():
    wired = handlers()
    *_, (_, dynamo, *_) = wired.send("hello", False, False, "loop", "", "", *SETTINGS.values())
    head, _, rest = dynamo.partition("\n")
    for options in ({}, {"threshold": "x"}, {"threshold": None}, {"exact": True}, {"threshold": 1e308}):
        wire = json.dumps({**json.loads(head), "options": options}) + "\n" + rest
        message_of(lambda wire=wire: wired.timeline_chart(wire))


@BRIEF
@given(values)
def test_server_functions_take_anything(payload):
    assert served_trace(HOST.store.get_trace)(payload) is None
    assert not any(served_passes(HOST.store.get_pass)(payload))
    served_split(lambda: None)(payload)
    event = SimpleNamespace(run=payload, index=payload, threshold=payload)
    message_of(lambda: handlers().heatmap(event))
    message_of(lambda: handlers().chosen_threshold(event))


def test_run_ids_are_random_and_never_those_of_a_file(tmp_path):
    seen = set()
    for _ in range(40):
        (result,) = FUNCTIONS["compare"]("hello")
        for lane in ("base", "dynamo"):
            (run,) = read_runs(result[lane]["trace"].splitlines())
            seen.add(run.header.run)
    assert len(seen) == 80 and all(len(run) == 32 for run in seen)
    # 122 random bits: of 16 digits most turn up at every place but the two that say what kind of id it is.
    assert sum(len({run[place] for run in seen}) >= 12 for place in range(32)) >= 30
    chosen = tmp_path / "trace.ndjson"
    chosen.write_text(result["base"]["trace"])
    view = HOST.load(chosen)
    assert run.header.run not in view.base and read_runs(view.base.splitlines())[0].header.run not in seen


def test_neither_prompt_nor_answer_is_logged(caplog):
    secret = "my-secret-prompt"
    with caplog.at_level(logging.DEBUG):
        list(FUNCTIONS["generate"](secret))
        message_of(lambda: list(FUNCTIONS["generate"](secret, threshold=9)))
        wired = handlers()
        *_, (base, dynamo, *_) = wired.send(secret, False, False, "loop", "", "", *SETTINGS.values())
        list(wired.look_again(base, dynamo.replace('"lane":"dynamo"', '"lane":5')))
        list(wired.look_again(base, dynamo.replace(secret, secret + "!", 1)))
    assert secret not in caplog.text


# -- over the network -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    demo = build_demo(scripted_pair())
    _, url, _ = demo.launch(
        **{**launch_options(), "quiet": True, "inbrowser": False}, prevent_thread_lock=True
    )
    yield url
    demo.close()


def fetch(url: str, body: dict | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


CALLS = (
    {}, [], None, "x", {"fn_name": "get_trace"},
    {"fn_name": "__init__", "component_id": 1, "session_hash": "a", "data": []},
    {"fn_name": "get_trace", "component_id": 10**9, "session_hash": "a", "data": 1},
)  # fmt: skip
PATHS = (
    "/etc/passwd", "../../../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "requirements.txt", "app.py",
    "SECURITY.md", "spaces_config.yaml", "assets/models/dynamo/config.json", ".git/config", "file:///etc/passwd",
    "/proc/self/environ", "..\\..\\etc\\passwd", "votes/votes.sqlite3",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_file_is_served_by_its_path(page, path):
    for route in (
        "gradio_api/file=",
        "gradio_api/stream/",
        "gradio_api/proxy=",
        "static/",
        "assets/",
        "custom_component/",
    ):
        status, content = fetch(f"{page}{route}{urllib.parse.quote(path, safe='%/.')}")
        assert status >= 300, (route, content[:80])


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "app.py", "../app.py"])
def test_the_page_loads_no_trace_by_a_path_that_was_not_uploaded(page, path):
    config = json.loads(fetch(f"{page}config")[1])
    (load,) = [
        each
        for each in config["dependencies"]
        if any("upload" in target for target in each["targets"]) and len(each["outputs"]) == 4
    ]
    file = {"path": path, "orig_name": "x.ndjson", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": load["id"], "session_hash": "abc"}
    for route in ("gradio_api/run/predict", "gradio_api/queue/join"):
        status, answer = fetch(f"{page}{route}", body)
        assert b"root:" not in answer and b"PATH=" not in answer
    assert status in (200, 401, 403, 404, 422)


@pytest.mark.parametrize("payload", CALLS)
def test_strange_calls_of_server_functions_are_refused(page, payload):
    status, answer = fetch(f"{page}gradio_api/component_server", payload)
    assert status >= 400 and b"Traceback" not in answer


@pytest.mark.parametrize("prompt", ["\ud800", "\u202e\x00", "\n" * 2000, "<script>alert(1)</script>"])
def test_a_strange_prompt_comes_back_through_the_network(page, prompt):
    name = urllib.request.Request(
        f"{page}gradio_api/call/generate",
        json.dumps({"data": [prompt, "dynamo", 0.5, 1, 0.7, 50, 1.1, 3, False, 96, 0, []]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(name, timeout=PATIENCE) as response:
        event = json.loads(response.read())["event_id"]
    with urllib.request.urlopen(f"{page}gradio_api/call/generate/{event}", timeout=PATIENCE) as response:
        answer = response.read().decode()
    assert "event: complete" in answer or "prompt: " in answer, answer[-300:]


def test_a_secret_of_the_environment_is_nowhere_on_the_page(page, monkeypatch):
    for name in ("HF_TOKEN", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, "hf_secret_of_the_owner")
    client = client_of(page)
    told_of = [fetch(page)[1], fetch(f"{page}config")[1], fetch(f"{page}gradio_api/info")[1]]
    told_of.append(json.dumps(client.predict("hello", api_name="/compare")).encode())
    assert not any(b"hf_secret_of_the_owner" in each for each in told_of)
