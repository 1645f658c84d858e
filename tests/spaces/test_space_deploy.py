"""Deployment against a local hub."""

import functools
import json
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dynamo.__main__ import main
from dynamo.spaces import Deployment, SpaceProject, deploy
from dynamo.spaces import deployment as deploying

ROOT = Path(__file__).resolve().parents[2]
ID = "someone/dynamo"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """This hub builds at once: nothing is gained by giving it time to begin, or by looking seldom."""
    monkeypatch.setattr(deploying, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.02)))


@pytest.fixture
def project(tmp_path):
    """A small Space, deployed in no time."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "app.py").write_text("print('hello')\n")
    (root / "README.md").write_text("# Ours\n")
    (root / "requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    (root / "spaces_config.yaml").write_text(
        (ROOT / "spaces_config.yaml").read_text(encoding="utf-8").split("upload:")[0]
        + "upload: [app.py, requirements.txt, spaces_config.yaml]\n",
        encoding="utf-8",
    )
    return root


def change(root, old, new):
    path = root / "spaces_config.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def deployed(root, api, profile="gpu", environment=None, timeout=60.0):
    plan = Deployment.plan(ID, SpaceProject.read(root, profile), environment or {})
    return deploy(plan, api, timeout=timeout, poll=0.01)


def test_a_new_space_gets_everything_and_runs(hub, api, project):
    change(project, "secrets: []", "secrets: [JUDGE_KEY]")
    result = deployed(project, api, environment={"JUDGE_KEY": "hidden"})
    space = hub.space(ID)
    assert space.created_with["sdk"] == "gradio"
    assert set(space.files) == {
        ".gitattributes",
        "README.md",
        "app.py",
        "requirements.txt",
        "spaces_config.yaml",
    }
    assert b"suggested_hardware: t4-small" in space.files["README.md"]
    assert space.variables == {"GRADIO_ANALYTICS_ENABLED": "False", "DYNAMO_PROFILE": "gpu"}
    assert space.secrets == {"JUDGE_KEY": "hidden"} and "hidden" not in json.dumps(result)
    assert (space.hardware, space.sleep_time) == ("t4-small", 3600)
    assert result["stage"] == "RUNNING" and len(space.commits) == 1


def test_an_existing_space_is_brought_to_what_the_file_says(hub, api, project):
    deployed(project, api)
    space = hub.space(ID)
    space.files["old.py"] = b"from an earlier version"
    space.variables |= {"DYNAMO_PROFILE": "cpu", "STALE": "1"}
    space.sleep_time, space.stages = 99, ["RUNNING"]
    result = deployed(project, api)
    assert "old.py" not in space.files
    assert space.variables == {"GRADIO_ANALYTICS_ENABLED": "False", "DYNAMO_PROFILE": "gpu"}
    assert space.sleep_time == 3600
    assert [line.split(":")[0] for line in result["done"]] == [
        "deleted the variable STALE", "set the variable DYNAMO_PROFILE", "uploaded 4 files, deleted old.py",
        "set the sleep time to 3600 s", "it runs",
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["SLEEPING", "PAUSED"])
def test_a_space_that_sleeps_is_woken(hub, api, project, stage):
    deployed(project, api)
    space = hub.space(ID)
    space.stages = [stage]

    def wake(handler):
        space.stages = ["APP_STARTING", "RUNNING"]
        handler.answer(200, {"stage": "APP_STARTING", "hardware": {"requested": space.hardware}})

    hub.spoiled[f"/{ID}/restart"] = wake
    result = deployed(project, api)
    assert result["stage"] == "RUNNING" and "woke it up" in result["done"]


def test_files_of_the_spaces_own_stay_if_the_file_says_so(hub, api, project):
    deployed(project, api)
    hub.space(ID).files["data/notes.txt"] = b"theirs"
    with (project / "spaces_config.yaml").open("a") as file:
        file.write('keep: ["data/*"]\n')
    deployed(project, api)
    assert hub.space(ID).files["data/notes.txt"] == b"theirs"


def test_zerogpu_is_asked_for_when_the_space_is_made(hub, api, project):
    deployed(project, api, profile="zerogpu")
    space = hub.space(ID)
    assert space.created_with["hardware"] == "zero-a10g" and space.sleep_time is None
    assert not any(request.endswith("/hardware") for request in hub.requests)


def test_a_secret_that_nobody_has_stops_it_before_the_upload(hub, api, project):
    change(project, "secrets: []", "secrets: [JUDGE_KEY]")
    with pytest.raises(ValueError, match="neither the Space nor the environment has JUDGE_KEY"):
        deployed(project, api)
    assert hub.space(ID).commits == []
    hub.space(ID).secrets["JUDGE_KEY"] = "set by hand"
    deployed(project, api)
    assert hub.space(ID).secrets == {"JUDGE_KEY": "set by hand"}


def test_a_space_that_fails_or_takes_too_long_is_an_error_with_where_to_look(hub, api, project):
    deployed(project, api)
    hub.space(ID).stages = ["BUILDING", "BUILD_ERROR"]
    with pytest.raises(OSError, match="does not run: BUILD_ERROR; read its log with: hf spaces logs"):
        deployed(project, api)
    hub.space(ID).stages = ["BUILDING"]
    with pytest.raises(OSError, match="someone/dynamo does not run after 0 s"):
        deployed(project, api, timeout=0.1)


def test_refusals_of_the_hub_are_sentences(hub, api, project):
    hub.failing["/api/repos/create"] = 402
    with pytest.raises(OSError, match=r"the hub answered 402 .*needs a paid plan"):
        deployed(project, api)


def test_a_dry_run_tells_the_plan_and_opens_no_connection(project, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("JUDGE_KEY", "hidden")
    change(project, "secrets: []", "secrets: [JUDGE_KEY, OTHER_KEY]")
    arguments = ["space", "deploy", "--root", str(project), "--repo", ID, "--profile", "gpu", "--dry-run"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["files"] == ["README.md", "app.py", "requirements.txt", "spaces_config.yaml"]
    assert (
        "set the secret JUDGE_KEY from the environment" in shown.err and "hidden" not in shown.out + shown.err
    )
    assert "leave the secret OTHER_KEY" in shown.err and "ask for t4-small, asleep after 3600 s" in shown.err


def test_the_command_deploys_and_a_wrong_configuration_does_not(hub, project, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", functools.partial(HfApi, endpoint=hub.url))
    arguments = [
        "space",
        "deploy",
        "--root",
        str(project),
        "--repo",
        ID,
        "--profile",
        "cpu",
        "--timeout",
        "60",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["space"].endswith("/spaces/someone/dynamo")
    change(project, "colorTo: blue", "colorTo: teal")
    hub.requests.clear()
    assert main(arguments) == 2
    assert "card.colorTo: expected one of" in capsys.readouterr().err and hub.requests == []
