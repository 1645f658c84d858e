"""Names and the hub: what is fetched, what is refused, and how often an absent hub is asked."""

import socket
import time

import pytest
from conftest import tiny_base, tiny_dynamo
from hub import Repo
from huggingface_hub import HfApi

from dynamo import loading
from dynamo.loading import downloads, names
from dynamo.training.trainer import save_model


@pytest.fixture
def no_hub(monkeypatch):
    """An address that is taken and where nothing listens, and a count of how often it was asked."""
    asked = []

    class Counting(HfApi):
        def __init__(self):
            super().__init__(endpoint=url)

        def model_info(self, *arguments, **keywords):
            asked.append(arguments)
            return super().model_info(*arguments, **keywords)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "HfApi", Counting)
    monkeypatch.setattr(downloads, "_away", {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        yield asked


def repo_of(folder):
    return Repo({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")})


def test_an_adapter_is_named_for_what_it_is(at_hub, tmp_path):
    (tmp_path / downloads.ADAPTER_FILE).write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    at_hub.repos[("model", "someone/lora")] = repo_of(tmp_path)
    for name in (str(tmp_path), "someone/lora"):
        with pytest.raises(ValueError, match=f"model: {name} is an adapter.*merge_and_unload"):
            loading.load(name, device="cpu")


def test_a_model_of_the_hub_is_fetched_once_and_its_bytes_are_told(at_hub, tmp_path, tokenizer):
    save_model(tiny_dynamo(), tokenizer, tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    at_hub.repos[("model", "someone/tiny")] = repo_of(tmp_path / "model")
    progress_calls = []
    pair = loading.load(
        "someone/tiny", device="cpu", progress=lambda done, total: progress_calls.append((done, total))
    )
    assert pair.dynamo.config.num_token_heads == 3
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert progress_calls[-1][0] == progress_calls[-1][1] >= size
    assert not any("pytorch_model.bin" in request for request in at_hub.requests)
    at_hub.requests.clear()
    loading.load("someone/tiny", device="cpu")
    assert at_hub.requests == []


def test_a_stock_model_of_the_hub_names_the_command_that_trains_heads(at_hub, tmp_path, tokenizer):
    save_model(tiny_base(), tokenizer, tmp_path / "model")
    at_hub.repos[("model", "someone/stock")] = repo_of(tmp_path / "model")
    with pytest.raises(ValueError, match="python -m dynamo train --model someone/stock"):
        loading.load("someone/stock")


def test_pickled_weights_of_the_hub_are_refused_before_they_are_fetched(at_hub):
    at_hub.repos[("model", "someone/old")] = Repo({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(ValueError, match=r"pytorch_model.bin only; safetensors .*save_pretrained"):
        loading.load("someone/old")
    assert not any("/resolve/" in request for request in at_hub.requests)


def test_pickled_weights_of_a_folder_are_refused_too(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pytorch_model.bin only; safetensors"):
        loading.load_model(str(tmp_path))


def test_every_refusal_of_the_hub_has_its_own_sentence(at_hub):
    at_hub.repos[("model", "someone/gated")] = Repo(gated=True)
    with pytest.raises(OSError, match="someone/gated is gated; accept its terms"):
        loading.load("someone/gated")
    with pytest.raises(OSError, match="the hub has no model someone/nothing"):
        loading.load("someone/nothing")
    at_hub.failing["/api/models/someone/ill"] = 503
    with pytest.raises(OSError, match=r"cannot be fetched from the hub \(it answered 503\)"):
        loading.load("someone/ill")


def test_an_architecture_that_is_not_ours_is_named(at_hub):
    files = {"config.json": b'{"model_type": "gpt2"}', "tokenizer.json": b"{}"}
    files["model.safetensors"] = (2).to_bytes(8, "little") + b"{}"
    at_hub.repos[("model", "someone/gpt")] = Repo(files)
    for load in (loading.load, loading.load_model):
        with pytest.raises(ValueError, match=r"someone/gpt: .*'gpt2'"):
            load("someone/gpt")


def test_a_hub_that_is_away_is_asked_once_in_five_minutes(no_hub, monkeypatch):
    with pytest.raises(OSError, match=r"cannot be fetched from the hub \(Connect"):
        loading.load("someone/model")
    with pytest.raises(OSError, match="cannot be fetched from the hub"):
        loading.load("someone/other")
    assert len(no_hub) == 1
    later = time.monotonic() + downloads.HUB_AWAY_SECONDS + 1
    monkeypatch.setattr(downloads.time, "monotonic", lambda: later)
    with pytest.raises(OSError):
        loading.load("someone/model")
    assert len(no_hub) == 2


def test_the_embedded_pair_takes_the_place_of_what_cannot_be_had_and_says_why(no_hub):
    pair, notice = loading.load_or_embedded("someone/model", device="cpu")
    assert pair.name == "embedded"
    assert "someone/model is not in the cache" in notice and "comes with the project" in notice
    pair, notice = loading.load_or_embedded("embedded", device="cpu")
    assert (pair.name, notice) == ("embedded", "")


def test_a_fault_of_the_embedded_pair_is_not_hidden(monkeypatch, tmp_path):
    """What was asked beside the name does not hide a fault of the embedded pair."""
    monkeypatch.setattr(names, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="it holds no config"):
        loading.load_or_embedded("embedded")
