"""What programs and tools may call, over the network: the same functions, one of each run at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fakes import scripted_pair
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from visitors import PATIENCE, client_of, until

from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import read_runs, read_trace
from dynamo.ui import build_demo, launch_options
from dynamo.ui.api import Programs
from dynamo.ui.compare.service import PageService


@pytest.fixture(scope="module")
def client():
    demo = build_demo(scripted_pair(seconds=0.01, sleep=True))
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    yield client_of(url)
    demo.close()


def test_a_program_streams_an_answer(client):
    job = client.submit("hello", api_name="/generate")
    last = job.result()
    assert len(job.outputs()) > 3
    assert last["tokens"] == 45 and last["end"] == "eos" and last["tokens_per_forward"] > 1
    assert read_trace(last["trace"].splitlines()).text == last["text"]
    growing = [len(output["trace"]) for output in job.outputs()]
    assert growing == sorted(growing)


def test_a_program_may_cancel(client):
    job = client.submit("hello", max_new_tokens=256, api_name="/generate")
    until(lambda: len(job.outputs()) >= 2, PATIENCE)
    job.cancel()
    assert client.predict("hello", lane="base", max_new_tokens=1, api_name="/generate")["tokens"] == 1


def test_a_program_compares_both_lanes(client):
    result = client.predict("hello", api_name="/compare")
    assert result["base"]["text"] == result["dynamo"]["text"]
    assert result["wall_clock_ratio"] > 1.1
    assert result["base"]["tokens_per_forward"] == 1


def test_what_a_program_does_not_say_is_as_chosen_for_the_pair():
    chosen = SamplingOptions(exact=True, temperature=0.5, correction="correlator")
    programs = Programs(PageService(replace(scripted_pair(), options=chosen)))

    def options(lane):
        (run,) = read_runs(lane["trace"].splitlines())
        return {name: run.header.options[name] for name in ("exact", "threshold", "temperature")}

    for given, expected in (
        ({}, {"exact": True, "threshold": 0.5, "temperature": 0.5}),
        ({"threshold": 0.9}, {"exact": False, "threshold": 0.9, "temperature": 0.5}),
    ):
        assert options([*programs.generate("hello", **given)][-1]) == expected
        assert options([*programs.compare("hello", **given)][-1]["dynamo"]) == expected
    said = [*programs.generate("hello", threshold=0.9, exact=True, temperature=0.0)][-1]
    assert options(said) == {"exact": True, "threshold": 0.9, "temperature": 0.0}


def test_a_program_sweeps_thresholds(client):
    rows = client.predict("hello", thresholds=[0, 1.0], api_name="/threshold_sweep")
    assert [row["threshold"] for row in rows] == [0, 1]
    assert rows[0]["passes"] < rows[1]["passes"] == 45


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": " "}, "prompt: "),
        ({"prompt": "hi", "threshold": 2}, "threshold: "),
        ({"prompt": "hi", "max_new_tokens": 10**6}, "max_new_tokens: "),
        ({"prompt": "hi", "lane": "third"}, "lane"),
        ({"prompt": "hi", "stop": [""]}, "stop: "),
        ({"prompt": "hi", "stop": ["x"] * 17}, "stop: "),
    ],
)
def test_a_programs_mistake_comes_back_in_a_sentence(client, arguments, sentence):
    with pytest.raises((AppError, ValueError), match=sentence):
        client.predict(**arguments, api_name="/generate")


def test_parameters_are_documented_for_programs_and_tools(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/generate", "/compare", "/threshold_sweep"}
    names = [parameter["parameter_name"] for parameter in described["/generate"]["parameters"]]
    assert names[:3] == ["prompt", "lane", "threshold"] and "seed" in names


def test_the_functions_are_tools_of_the_same_names(client):
    async def use() -> tuple[list[str], str]:
        async with (
            streamablehttp_client(f"{client.src}gradio_api/mcp/", timeout=PATIENCE) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            answer = await session.call_tool("compare", {"prompt": "hello"})
            assert not answer.isError
            return names, answer.content[0].text

    names, answer = asyncio.run(use())
    assert sorted(names) == ["compare", "generate", "threshold_sweep"]
    assert "what time would you like to eat" in answer
