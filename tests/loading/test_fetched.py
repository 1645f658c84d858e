"""A fetched revision on the disk, in each of the layouts of the hub's cache: one link to a blob, two links
with Xet, copies where there are no links. What is whole stays, what is not goes, other models keep theirs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import close_session, get_session, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

from dynamo.loading.fetched import CorruptDownload, enter, guarded, install_checks, remove_corrupt

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"model_type": "gpt_neox"}'
XET = "ab" * 32


def put(cache: Path, model: str, name: str, announced: bytes, content: bytes | None = None) -> Path:
    """A file as the hub's cache keeps it; the folder of its revision."""
    top = cache / f"models--someone--{model}"
    blob = top / "blobs" / hashlib.sha256(announced).hexdigest()
    file = top / "snapshots" / COMMIT / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(announced if content is None else content)
    os.symlink(os.path.relpath(blob, file.parent), file)
    return top / "snapshots" / COMMIT


def share(cache: Path, folder: Path, name: str) -> None:
    """What the library does with a file that came by Xet."""
    blob = folder.parents[1] / "blobs" / Path(os.readlink(folder / name)).name
    size = blob.stat().st_size
    assert publish_blob_to_shared_store(
        blob_path=str(blob), xet_hash=XET, cache_dir=cache, expected_size=size
    )
    assert blob.is_symlink() and (folder / name).resolve().name == XET


def store(cache: Path) -> Path:
    return cache / "blobs" / XET[:2] / XET


def test_what_came_by_xet_is_whole_though_its_last_name_is_not_its_hash(tmp_path):
    folder = put(tmp_path, "tiny", "config.json", CONFIG)
    share(tmp_path, folder, "config.json")
    assert remove_corrupt(folder) == ""
    assert (folder / "config.json").read_bytes() == CONFIG


def test_what_came_spoiled_by_xet_is_taken_out_of_the_shared_store_too(tmp_path):
    folder = put(tmp_path, "tiny", "config.json", CONFIG, CONFIG[::-1])
    share(tmp_path, folder, "config.json")
    assert remove_corrupt(folder) == "config.json is not what the hub announced"
    assert not list(folder.iterdir()) and not list((folder.parents[1] / "blobs").iterdir())
    assert not store(tmp_path).exists()


def test_the_shared_store_keeps_what_another_model_links_to(tmp_path):
    other = put(tmp_path, "other", "config.json", CONFIG)
    share(tmp_path, other, "config.json")
    folder = put(tmp_path, "tiny", "config.json", b"announced otherwise", CONFIG)
    share(tmp_path, folder, "config.json")
    assert remove_corrupt(folder) == "config.json is not what the hub announced"
    assert not list(folder.iterdir())
    assert remove_corrupt(other) == "" and (other / "config.json").read_bytes() == CONFIG


def test_in_a_cache_of_copies_there_is_no_name_to_hold_a_file_against(tmp_path):
    folder = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    (folder / ("ab" * 20)).mkdir(parents=True)
    for name in ("config.json", "ab" * 32, f"{'ab' * 20}/config.json"):
        (folder / name).write_bytes(CONFIG)
    assert remove_corrupt(folder) == ""
    (folder / "config.json").write_bytes(CONFIG[:-1])
    assert remove_corrupt(folder) == "config.json is no json"
    assert not (folder / "config.json").exists() and (folder / ("ab" * 32)).exists()


def test_a_link_that_leads_to_no_file_is_taken_out_and_its_goal_is_not(tmp_path):
    folder = put(tmp_path, "tiny", "config.json", CONFIG)
    kept = tmp_path / "kept"
    kept.mkdir()
    os.symlink(folder.parents[1] / "blobs" / "..", folder / "a.json")
    os.symlink(kept, folder / "b.json")
    os.symlink(tmp_path / "nowhere", folder / "c.json")
    assert remove_corrupt(folder) == "a.json is no file"
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert kept.is_dir() and remove_corrupt(folder) == ""


def test_a_link_to_a_file_of_the_users_own_goes_alone(tmp_path):
    own = tmp_path / ("ab" * 32)
    own.write_bytes(CONFIG)
    folder = put(tmp_path, "tiny", "README.md", b"a card")
    os.symlink(own, folder / "config.json")
    assert remove_corrupt(folder) == "config.json is not what the hub announced"
    assert own.read_bytes() == CONFIG and not (folder / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "is_read"),
    [("config.json", True), ("base/config.json", True), ("generation_config.json", True),
     ("tokenizer.json", True), ("tokenizer_config.json", True), ("special_tokens_map.json", True),
     ("model.safetensors.index.json", True), ("results.json", False), ("logs/config-old.json", False)],
)  # fmt: skip
def test_only_json_that_is_read_must_be_json(tmp_path, name, is_read):
    folder = put(tmp_path, "tiny", name, b'{"a": NaN}{"b": 1}\n')
    assert remove_corrupt(folder) == (f"{name} is no json" if is_read else "")


def test_a_reference_that_cannot_be_written_leaves_nothing_half(tmp_path, monkeypatch):
    folder = put(tmp_path, "tiny", "config.json", CONFIG)

    def full(path, text):
        path.open("w").close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            enter(folder)
    assert not list((folder.parents[1] / "refs").iterdir())
    enter(folder)
    assert [file.name for file in (folder.parents[1] / "refs").iterdir()] == ["main"]


@pytest.fixture
def factory():
    """Sets the library's client factory for a test."""
    before = _http._GLOBAL_CLIENT_FACTORY  # there is no public way to read it
    yield set_client_factory
    set_client_factory(before)


def own_client(seen):
    client = httpx2.Client(headers={"X-Own": "yes"}, timeout=7.0)
    client.event_hooks["response"].append(seen.append)
    return client


def refuses(client, hub):
    hub.spoiled["/evil"] = lambda handler: handler.answer(200, X_Repo_Commit="../x")
    with pytest.raises(CorruptDownload):
        client.get(f"{hub.url}/evil")


def test_clients_of_the_hubs_library_are_guarded_and_keep_their_settings(hub, factory):
    seen = []
    factory(lambda: own_client(seen))
    for _ in range(3):
        install_checks()
        client = get_session()
        assert client.headers["X-Own"] == "yes" and client.timeout.read == 7.0
        assert len(client.event_hooks["response"]) == 2 and len(client.event_hooks["request"]) == 1
        refuses(client, hub)
        close_session()  # the library does so itself when a connection is not secure
    refuses(get_session(), hub)
    assert len(seen) == 4


def test_a_client_that_the_program_has_guarded_itself_stays_open(hub, factory):
    factory(lambda: guarded(own_client([])))
    client = get_session()
    install_checks()
    assert get_session() is client and not client.is_closed
    refuses(client, hub)


def test_the_librarys_own_hooks_stay(factory, monkeypatch):
    """One of them refuses every request when HF_HUB_OFFLINE is set."""
    factory(_http.default_client_factory)
    install_checks()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        get_session().get("http://127.0.0.1:9/")
