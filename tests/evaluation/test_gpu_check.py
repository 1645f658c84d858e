import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tool, monkeypatch):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["gpu_check.py", *map(str, words)])
        return tool.main()

    return call


def test_without_cuda_it_says_so(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("--output", tmp_path / "results") == 1
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_parts_run_small_on_the_cpu(call, tmp_path):
    for part in ("correctness", "decoding", "training"):
        assert call("--output", tmp_path, "--device", "cpu", "--quick", "--part", part) == 0
    found = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    for name in ("embedded", "3x64x4x500"):
        model = found["correctness"]["models"][name]
        assert model["float32"]["largest_difference"] < 1e-3 and not model["float32"]["passes_captured"]
        assert model["bfloat16"]["kl_to_cpu"] < 0.1
    shape = found["decoding"]["shapes"]["3x64x4x500"]
    assert shape["own_over_generate"] > 0 and shape["lanes"]["dynamo"]["tokens_per_forward"] > 2.5
    assert found["training"]["tokens_per_second"] > 0 and found["training"]["over_the_papers_a100"] is None
    assert all(each["machine"]["device_type"] == "cpu" for each in found.values())


def test_a_part_that_is_there_is_not_run_again_and_a_failed_one_does_not_stop_the_rest(
    call, tool, tmp_path, monkeypatch, capsys
):
    ran = []

    def run(command, timeout, **_):
        part = command[command.index("--part") + 1]
        ran.append(part)
        if part == "decoding":
            raise subprocess.CalledProcessError(7, command)
        if part == "training":
            raise subprocess.TimeoutExpired(command, timeout)
        tool.write(tmp_path / f"{part}.json", {"part": part})

    monkeypatch.setattr(tool.subprocess, "run", run)
    arguments = "--output", tmp_path, "--device", "cpu", "--quick"
    assert call(*arguments) == 1
    results = json.loads(capsys.readouterr().out)
    assert ran == list(tool.PARTS) == list(results)
    assert "code 7" in results["decoding"]["error"] and "not done within" in results["training"]["error"]
    ran.clear()
    assert call(*arguments) == 1 and ran == ["decoding", "training"]
    ran.clear()
    assert call(*arguments, "--seconds", "0") == 1 and not ran
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["training"] == {"error": "no time was left"}
