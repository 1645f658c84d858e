"""The page of a ZeroGPU Space, through app.py: models wait, one function has the GPU, plain values cross."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_base, tiny_dynamo
from gradio_client.exceptions import AppError
from lent_gpu import Spaces
from visitors import client_of

from dynamo.training.trainer import save_model
from dynamo.ui.server import zerogpu

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import app  # noqa: E402


@pytest.fixture
def spaces(monkeypatch):
    # Whatever this machine has: the pair that comes with the project is the quicker one.
    monkeypatch.setattr("dynamo.loading.names.find_spec", lambda name: None)
    spaces = Spaces()
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=spaces.GPU))
    monkeypatch.setattr(zerogpu, "_tasks", {})
    return spaces


@pytest.fixture
def served(spaces, tmp_path, tokenizer):
    """The page of a ZeroGPU Space with a tiny pair, and a client of it."""
    save_model(tiny_base(seed=1), tokenizer, tmp_path / "base")
    save_model(tiny_dynamo(seed=2), tokenizer, tmp_path / "dynamo")
    environment = {"SPACES_ZERO_GPU": "true", "SPACE_ID": "someone/dynamo", "DYNAMO_PROFILE": "zerogpu",
                   "DYNAMO_MODEL": str(tmp_path), "DYNAMO_LIMITS": "off"}  # fmt: skip
    demo, options = app.build(environment)
    assert spaces.asked == [], "loading takes nobody's quota"
    options |= {"inbrowser": False, "mcp_server": False}
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
    yield SimpleNamespace(demo=demo, client=client_of(url))
    demo.close()


def test_loops_are_compiled_before_there_are_workers(spaces, monkeypatch):
    """Loops are compiled before there are workers that would do it on a visitors quota."""
    compiled = []
    monkeypatch.setattr(
        "dynamo.ui.compare.pair.warm_up", lambda *asked: compiled.append((*asked, len(spaces.asked)))
    )
    app.build({"SPACES_ZERO_GPU": "true", "SPACE_ID": "x/y", "DYNAMO_PROFILE": "zerogpu"})
    [(heads, vocabulary, table, asked)] = compiled
    assert (heads, asked) == (3, 0) and table.order == heads and vocabulary == table.vocab_size


def test_a_race_takes_one_worker_whose_seconds_follow_the_length(served, spaces):
    assert spaces.functions == [zerogpu.run_task]
    for tokens in (16, 96):
        answer = served.client.predict(prompt="hello", max_new_tokens=tokens, api_name="/compare")
        assert answer["dynamo"]["tokens"] > 0 and answer["base"]["passes"] == answer["base"]["tokens"]
    assert len(spaces.asked) == 2 and spaces.asked[0] < spaces.asked[1] <= 30


def test_bad_input_is_refused_before_a_gpu_is_asked_for(served, spaces):
    for wrong, sentence in (
        ({"prompt": " "}, "it is empty"),
        ({"prompt": "hello " * 700}, "shorten it"),
        ({"prompt": "hello", "threshold": 3.0}, "threshold"),
        ({"prompt": "hello", "seed": -1}, "seed: expected 0 to"),
    ):
        with pytest.raises(AppError, match=sentence):
            served.client.predict(**wrong, api_name="/compare")
    assert spaces.asked == []


def test_what_costs_many_answers_is_not_offered_nor_another_model(served):
    config = served.demo.get_config_file()
    ids = {component["props"].get("elem_id") for component in config["components"]}
    assert {"prompt", "pane-base", "audit"} <= ids
    assert not {"strip-start", "sweep-run", "model-name", "training-start"} & ids


def test_where_a_space_lets_visitors_choose_every_pair_waits_loaded(spaces, tmp_path, monkeypatch):
    text = (ROOT / "spaces_config.yaml").read_text(encoding="utf-8")
    (tmp_path / "spaces_config.yaml").write_text(
        text.replace("model_choice_on_space: false", "model_choice_on_space: true"), encoding="utf-8"
    )
    monkeypatch.setattr(app, "HERE", tmp_path)
    demo, _ = app.build({"SPACES_ZERO_GPU": "1", "SPACE_ID": "x/y", "DYNAMO_PROFILE": "zerogpu"})
    parts = {each["props"].get("elem_id"): each["props"] for each in demo.get_config_file()["components"]}
    assert parts["model-name"]["interactive"] is False and "training-start" not in parts
    assert sum(name.startswith("lanes of") for name in zerogpu._tasks) == 1
