"""Habits of the real hub that a plain local one lacks: its API's own ETags, stalls, weights in shards."""

import functools
import hashlib
import threading

import pytest
from conftest import tiny_dynamo
from hub import SHA, Repo
from huggingface_hub import HfApi
from talks import stage

from dynamo.loading import EMBEDDED, downloads, load, names
from dynamo.training.trainer import save_model
from dynamo.ui.compare.service import PageService
from dynamo.ui.models.manager import ModelManager

NAME, WEIGHTS = "someone/tiny", "model.safetensors"
WEAK = 'W/"1f5-a/b+c="'  # as of a framework that answers, with what no file's hash may hold


@pytest.fixture
def files(tmp_path, tokenizer):
    save_model(tiny_dynamo(seed=1), tokenizer, tmp_path / "model")
    return {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


@pytest.fixture
def at_hub(hub, monkeypatch, files):
    monkeypatch.setattr(downloads, "HfApi", functools.partial(HfApi, endpoint=hub.url))
    monkeypatch.setattr(downloads, "_away", {})
    hub.repos[("model", NAME)] = Repo(files)
    yield hub
    hub.spoiled.clear()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_what_the_library_takes_no_hash_from_may_have_an_etag_of_its_own(at_hub, files):
    def listing(handler):
        entries = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in files]
        handler.answer(200, entries, ETag=WEAK, X_Repo_Commit=SHA)

    def weights(handler):
        hashed = {"X_Linked_ETag": f'"{sha256(files[WEIGHTS])}"'} if handler.command == "HEAD" else {}
        handler.answer(200, files[WEIGHTS], ETag=WEAK, X_Repo_Commit=SHA, **hashed)

    at_hub.spoiled |= {f"/tree/{SHA}": listing, f"/{WEIGHTS}": weights}
    assert load(NAME, device="cpu").dynamo.config.num_token_heads == 3


def test_the_hub_tells_of_another_architecture_before_anything_is_fetched(at_hub):
    def other_architecture(handler):
        handler.answer(200, {"id": NAME, "sha": SHA, "siblings": [], "config": {"model_type": "bert"}})

    at_hub.spoiled[f"/api/models/{NAME}"] = other_architecture
    for load_it in (load, names.resolve):
        with pytest.raises(ValueError, match="someone/tiny: its architecture is 'bert'"):
            load_it(NAME)
    assert not [request for request in at_hub.requests if "/resolve/" in request]
    assert names.resolve(NAME, any_kind=True).is_dir()


def test_a_cancelled_download_that_stalls_is_not_waited_for(at_hub, files, tmp_path):
    asked, over = threading.Event(), threading.Event()
    content = files[WEIGHTS]

    def stall(handler):
        if handler.command == "GET":
            asked.set()
            over.wait(240)
        handler.answer(200, content, ETag=f'"{sha256(content)}"', X_Repo_Commit=SHA)

    at_hub.spoiled[f"/{WEIGHTS}"] = stall
    manager = ModelManager(
        PageService(stage(load(EMBEDDED, device="cpu"))), stage, any_model=True, device="cpu"
    )
    loading = manager.load(NAME)
    assert asked.wait(120), at_hub.requests
    manager.cancel()
    try:
        with pytest.raises(ValueError, match="is cancelled; loading it again"):
            list(loading)
        assert not downloads._away
        list(manager.load(str(tmp_path / "model")))
        assert manager.loaded == str(tmp_path / "model")
        at_hub.spoiled.clear()
    finally:
        over.set()
    list(manager.load(NAME))
    assert manager.loaded == NAME


def test_a_cancelled_bar_ends_the_download_before_the_next_file():
    """What it raises in a thread of Xet ends nothing; the library calls `refresh` before each file."""

    def cancelled(done, total):
        raise KeyboardInterrupt

    bar = downloads._reporting(cancelled)(total=0, unit="B")
    bar.total = 10
    with pytest.raises(KeyboardInterrupt):
        bar.update(3)
    with pytest.raises(KeyboardInterrupt):
        bar.refresh()
    bar.refresh(nolock=True)


def test_weights_of_which_only_some_files_are_in_the_cache_are_fetched(at_hub, files, tmp_path, monkeypatch):
    """Other programs enter a revision in the cache before its files have come."""
    model = load(str(tmp_path / "model"), device="cpu").dynamo
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    parts = [name for name in shards if "-of-" in name]
    assert len(parts) > 2
    files.pop(WEIGHTS)
    files |= shards
    snapshot = tmp_path / "hub-cache" / "models--someone--tiny" / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(SHA)
    index = "model.safetensors.index.json"
    for there in ([], [index], [index, *parts[:1]], [*parts[:1]]):
        for path in snapshot.iterdir():
            path.unlink()
        for name in ("config.json", "tokenizer.json", "cooccurrence.safetensors", *there):
            (snapshot / name).write_bytes(files.get(name, b""))
        assert not downloads.is_cached(NAME), there
    monkeypatch.setattr(downloads, "_away", {})
    (snapshot / "cooccurrence.safetensors").unlink()
    assert load(NAME, device="cpu").dynamo.num_parameters() == model.num_parameters()
    assert downloads.is_cached(NAME)
    for broken in (b"{", b"[]", b'{"weight_map": {"a": 3}}', b'{"weight_map": []}'):
        (snapshot / index).unlink()
        (snapshot / index).write_bytes(broken)
        assert not downloads.is_cached(NAME), broken
