"""What a hostile or broken hub may answer while a model is fetched: a model, or one sentence; nothing is
written outside the cache, no token leaves, and the next, good try has it whole."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import be_patient_with_hubs
from hostile import refusal
from hub import SHA, Hub, Repo, serving
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo import loading
from dynamo.loading import downloads, fetched
from dynamo.loading.fetched import check_names, remove_corrupt
from dynamo.loading.names import resolve
from dynamo.training.trainer import save_model

NAME = "someone/tiny"
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
TRICKS = (
    "../x.json", "/tmp/x.json", "a/../../x.json", "..\\x.json", "C:\\x.json", "\\\\host\\x.json", "C:x.json",
    "..", "", "a\nb.json", "\u202egnp.json", "../" * 40 + "etc/x.json", None, 7,
)  # fmt: skip
NO_LISTS = (b"", b"{", b"[", b"[1]", b"[]", b'{"a": [1]}', b"null", b"\xff\xfe", b"[" * 9999)
HTML = b"<!doctype html><title>Sign in</title>" + b" " * 2000


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer, dynamo_model):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(dynamo_model, tokenizer, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hubs(files):
    """The hub and another server on this machine that is none."""
    with serving(Hub()) as hub, serving(Hub()) as stranger:
        hub.repos["model", NAME] = Repo(dict(files))
        stranger.repos["model", NAME] = Repo(dict(files))
        patch = pytest.MonkeyPatch()
        be_patient_with_hubs(patch)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", "secret-token")
        patch.setattr(downloads, "HfApi", functools.partial(HfApi, endpoint=hub.url))
        patch.setattr("huggingface_hub.utils._http.logger.disabled", True)
        patch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
        yield hub, stranger
        patch.undo()


def fetch_badly_and_then_well(hubs, spoiled, token: str = "secret-token", after=lambda: None) -> str | None:
    """The sentence of the first try, None where it had a model all the same. after: called between them."""
    hub, stranger = hubs
    hub.tokens.clear()
    stranger.tokens.clear()
    with tempfile.TemporaryDirectory() as top, pytest.MonkeyPatch.context() as patch:
        cache = Path(top) / "some" / "where" / "cache"
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr(downloads, "_away", {})
        try:
            hub.spoiled = spoiled
            said = refusal(lambda: loading.load(NAME, device="cpu"))
        finally:
            hub.spoiled = {}
            after()
        assert said is None or (said.startswith("model: ") and NAME in said and token not in said)
        assert not stranger.tokens
        assert hub.tokens
        outside = [path for path in Path(top).rglob("*") if path.is_file() and not path.is_relative_to(cache)]
        assert not outside
        patch.setattr(downloads, "_away", {})  # as after five minutes
        fetched_files = {path.name: path.read_bytes() for path in resolve(NAME).iterdir()}
        assert fetched_files.keys() >= {CONFIG, TOKENIZER, WEIGHTS}
        assert fetched_files.items() <= hub.repos["model", NAME].files.items()
        requests = len(hub.requests)
        resolve(NAME)
        assert len(hub.requests) == requests  # the cache has it
    return said


# ---- answers, each of which takes the request's handler


def says(status: int, body: bytes = HTML, **headers: str):
    return lambda handler: handler.answer(status, body, **{"Content_Type": "text/html", **headers})


def sends(announced: bytes, sent: bytes, **headers: str):
    """A file's head as it should be, and another content."""
    etag = f'"{hashlib.sha256(announced).hexdigest()}"'
    head = {"ETag": etag, "X_Repo_Commit": SHA, **headers}

    def answer(handler):
        handler.answer(200, announced if handler.command == "HEAD" else sent, **head)

    return answer


def cuts(content: bytes, after: int):
    def answer(handler):
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if handler.command == "HEAD":
            return handler.answer(200, content, ETag=etag, X_Repo_Commit=SHA)
        handler.drop(content[:after], len(content), ETag=etag, X_Repo_Commit=SHA)

    return answer


def lists(*paths):
    return says(
        200,
        json.dumps([{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in paths]).encode(),
    )


def info(**fields):
    described = {"id": NAME, "sha": SHA, "siblings": [], "private": False, "tags": [], **fields}
    return says(200, json.dumps(described).encode(), Content_Type="application/json")


statuses = st.sampled_from([401, 403, 404, 416, 429, 500, 502, 503, 504])


@st.composite
def spoils(draw, files):
    """A path's ending and what is answered there."""
    where = draw(st.sampled_from(["info", "tree", CONFIG, TOKENIZER, WEIGHTS]))
    if where in ("info", "tree"):
        ending = f"/api/models/{NAME}" if where == "info" else f"/tree/{SHA}"
        body = draw(st.sampled_from((HTML, *NO_LISTS)))
        return ending, draw(
            st.one_of(
                st.just(says(200, body)),
                statuses.map(says),
                st.sampled_from(TRICKS).map(lambda path: lists(path) if where == "tree" else info(sha=path)),
            )
        )
    whole = files[where]
    cut = draw(st.integers(0, len(whole) - 1))
    other = draw(
        st.sampled_from([HTML, b"", whole[:cut], whole + b"x", b"\0" * len(whole), HTML.ljust(len(whole))])
    )
    trick = draw(
        st.sampled_from(
            [each for each in TRICKS if isinstance(each, str) and each.isascii() and "\n" not in each]
        )
    )
    return f"/{where}", draw(
        st.one_of(
            statuses.map(says),
            st.just(says(200)),
            st.just(sends(whole, other)),
            st.just(sends(whole, other[: len(whole)].ljust(len(whole)))),
            st.just(sends(other, other)),  # a broken upload: hash and content agree
            st.just(cuts(whole, cut)),
            st.just(sends(whole, whole, ETag=f'"{trick}"')),
            st.just(sends(whole, whole, X_Linked_ETag=f'"{trick}"')),
            st.just(sends(whole, whole, X_Repo_Commit=trick or "x")),
        )
    )


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.data())
def test_whatever_a_hub_answers_is_a_model_or_one_sentence(hubs, files, data):
    """Whatever a hub answers is a model or one sentence and the next try has it."""
    ending, answer = data.draw(spoils(files))
    fetch_badly_and_then_well(hubs, {ending: answer})


@pytest.mark.parametrize(
    "sent", [HTML, b'{"model_type": "gpt', b"{}"], ids=["a page", "cut JSON", "other JSON"]
)
def test_content_that_was_not_announced_is_refused_and_not_kept(hubs, files, sent):
    sent = sent.ljust(len(files[CONFIG]))[: len(files[CONFIG])]
    said = fetch_badly_and_then_well(hubs, {f"/{CONFIG}": sends(files[CONFIG], sent)})
    assert said is not None and f"{CONFIG} is not what the hub announced" in said


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER, WEIGHTS])
def test_a_broken_upload_is_not_kept_either(hubs, files, file):
    half = files[file][: len(files[file]) // 2]
    said = fetch_badly_and_then_well(hubs, {f"/{file}": sends(half, half)})
    assert said is not None and f"{file} is no {file.split('.')[1]}" in said


@pytest.mark.parametrize("header", ["ETag", "X_Linked_ETag"])
def test_a_hash_that_is_a_path_writes_nothing_where_it_leads(hubs, files, header):
    for described in ('"../../../../evil"', "W/../../evil", "W..", 'W/".."', "WW/"):
        spoiled = sends(files[CONFIG], files[CONFIG], **{header: described})
        said = fetch_badly_and_then_well(hubs, {f"/{CONFIG}": spoiled})
        assert said is not None and "which is none" in said


@pytest.mark.parametrize("commit", ["../../../../evil", "f" * 40, "0123456", ""])
@pytest.mark.parametrize("status", [200, 404])
def test_a_file_of_another_revision_than_was_asked_for_writes_nothing(hubs, files, commit, status):
    """For a file that is not there, the library notes so under the revision that the answer names."""
    file = files[CONFIG]

    def answer(handler):
        etag = f'"{hashlib.sha256(file).hexdigest()}"'
        error = {"X_Error_Code": "EntryNotFound"} if status == 404 else {}
        handler.answer(status, file, ETag=etag, X_Repo_Commit=commit, **error)

    said = fetch_badly_and_then_well(hubs, {f"/{CONFIG}": answer})
    assert said is not None and ("where another was asked for" in said or "no hash" in said)


def test_a_hub_that_stalls_in_its_list_of_files_is_left(hubs, monkeypatch):
    """It is given up after a moment; the good one that follows may take its time."""
    monkeypatch.setattr(fetched, "LISTING_SECONDS", 0.1)
    over = threading.Event()

    def go_on():
        over.set()
        monkeypatch.undo()

    try:
        said = fetch_badly_and_then_well(hubs, {f"/tree/{SHA}": lambda _: over.wait(120)}, after=go_on)
    finally:
        over.set()
    assert said is not None and "ReadTimeout" in said


@pytest.mark.parametrize("trick", TRICKS)
def test_a_file_or_revision_that_is_a_path_elsewhere_is_refused_by_name(hubs, trick):
    for spoiled in ({f"/tree/{SHA}": lists(CONFIG, trick)}, {f"/api/models/{NAME}": info(sha=trick)}):
        said = fetch_badly_and_then_well(hubs, spoiled)
        assert said is not None
    with pytest.raises(OSError, match="which is no"):
        check_names(SHA, [trick])


@pytest.mark.parametrize("path", ["a.json", "base/config.json", "..a/b..json", "a b.json", "ü.json"])
def test_plain_names_are_none_of_these(path):
    check_names(SHA, [path])


@pytest.mark.parametrize("what", [f"/{CONFIG}", f"/{WEIGHTS}", f"/api/models/{NAME}", f"/tree/{SHA}"])
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_elsewhere_gets_no_token(hubs, what, status):
    """The other server is another port, and so another origin; a hub's files do come from elsewhere."""
    hub, stranger = hubs
    before = len(stranger.requests)

    def answer(handler):
        path = urlsplit(handler.path).path
        headers = (
            {} if "/api/" in path else {"X_Repo_Commit": SHA, "ETag": f'"{hashlib.sha256(file).hexdigest()}"'}
        )
        handler.answer(
            status, file if handler.command == "HEAD" else b"", Location=stranger.url + path, **headers
        )

    file = hub.repos["model", NAME].files.get(what[1:], b"")
    fetch_badly_and_then_well(hubs, {what: answer})
    assert len(stranger.requests) > before and hub.tokens


def test_a_spoiled_model_does_not_make_the_hub_unreachable_for_others(hubs, files, tmp_path, monkeypatch):
    """Anyone may name a model, and one that is broken kept the others away for five minutes."""
    hub, _ = hubs
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_away", {})
    monkeypatch.setitem(hub.repos, ("model", "someone/broken"), Repo({**files, CONFIG: HTML}))
    assert "cannot be fetched" in (refusal(lambda: loading.load("someone/broken", device="cpu")) or "")
    assert loading.load(NAME, device="cpu").dynamo.config.num_token_heads == 3


def test_what_is_whole_stays_where_a_file_is_taken_out(tmp_path, files):
    model = tmp_path / "models--someone--tiny"
    blobs, folder = model / "blobs", model / "snapshots" / SHA
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content[:-1] if name == WEIGHTS else content)
        os.symlink(blob, folder / name)
    os.symlink((folder / WEIGHTS).resolve(), folder / "same.safetensors")
    assert remove_corrupt(folder) == f"{WEIGHTS} is not what the hub announced"
    assert remove_corrupt(folder) == ""
    assert {path.name for path in folder.iterdir()} == set(files) - {WEIGHTS}
    assert len(list(blobs.iterdir())) == len(files) - 1
