"""A local HTTP server that speaks as much of the Hugging Face Hub's API as this project uses.

Models and Spaces live in memory, files above a size go the LFS way, a Space has variables, secrets, hardware
and a list of stages through which it starts. Every request is kept in `requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    created_with: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hardware: str = "cpu-basic"
    sleep_time: int | None = None
    stages: list[str] = field(default_factory=lambda: ["BUILDING", "APP_STARTING", "RUNNING"])
    gated: bool = False


class Hub:
    """`url` serves `repos`, by ("model", "space" or "dataset", id); token: what writers must send; lfs_from:
    bytes."""

    def __init__(self, token: str = "token", lfs_from: int = 10_000):
        self.token, self.lfs_from = token, lfs_from
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failing: dict[str, int] = {}  # path prefix -> status
        self.cut: dict[str, int] = {}  # file -> bytes after which the line drops, and is not taken again
        self.spoiled: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}  # path ending -> the answer
        self.tokens: list[str] = []  # that were sent here
        self.url = ""
        self._digests: dict[bytes, str] = {}

    def digest(self, data: bytes) -> str:
        """SHA-256, of each content once: of a large one it takes as long as some would wait for an answer."""
        if data not in self._digests:
            self._digests[data] = hashlib.sha256(data).hexdigest()
        return self._digests[data]

    def model(self, repo_id: str) -> Repo:
        return self.repos[("model", repo_id)]

    def space(self, repo_id: str) -> Repo:
        return self.repos[("space", repo_id)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.send_response(status)
        headers = {"Content_Type": "application/json", "Content_Length": str(len(data)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.append(token)
        for ending, answer in self.hub.spoiled.items():
            if path.endswith(ending):
                return answer(self)
        for prefix, status in self.hub.failing.items():
            if path.startswith(prefix):
                return self.answer(status, {"error": "told to fail"})
        writes = self.command not in ("GET", "HEAD") and not path.startswith(("/lfs/", "/api/validate-yaml"))
        if writes and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self.hub.stored[parts[1]] = body
            return self.answer(200)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "someone", "type": "user", "orgs": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if parts[0] == "api":
            return self._api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:], body)
        kind = {"spaces": "space", "datasets": "dataset"}.get(parts[0], "model")
        parts = parts if kind == "model" else parts[1:]
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        if parts[2:3] == ["resolve"]:
            return self._file(self.hub.repos.get((kind, "/".join(parts[:2]))), "/".join(parts[4:]))
        self.answer(404, {"error": f"{self.command} {path} is not spoken here"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _create(self, asked: dict[str, Any]) -> None:
        key = (asked.get("type", "model"), f"{asked.get('organization') or 'someone'}/{asked['name']}")
        url = f"{self.hub.url}/{'spaces/' if key[0] == 'space' else ''}{key[1]}"
        if key in self.hub.repos:
            return self.answer(409, {"error": "You already created this repo", "url": url})
        # A Space comes with a card of the hub's own.
        files = {".gitattributes": b"*.bin filter=lfs\n"}
        if key[0] == "space":
            files["README.md"] = b"---\ntitle: untitled\n---\n"
        repo = self.hub.repos[key] = Repo(files=files, created_with=asked)
        repo.hardware = asked.get("hardware") or "cpu-basic"
        self.answer(200, {"url": url, "name": key[1], "id": key[1]})

    def _api(self, kind: str, repo_id: str, rest: list[str], body: bytes) -> None:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo.gated:
            return self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        match rest:
            case [] | ["revision", _]:
                files = [{"rfilename": name, "size": len(data)} for name, data in repo.files.items()]
                self.answer(200, {"id": repo_id, "sha": SHA, "siblings": files, "private": False, "tags": []})
            case ["tree", *_]:
                self.answer(200, [self._entry(name, data) for name, data in repo.files.items()])
            case ["preupload", _]:
                files = json.loads(body)["files"]
                modes = [{"path": file["path"], "shouldIgnore": False, "oid": None,
                          "uploadMode": "lfs" if file["size"] >= self.hub.lfs_from else "regular"}
                         for file in files]  # fmt: skip
                self.answer(200, {"files": modes})
            case ["commit", _]:
                self._commit(repo, repo_id, body)
            case _:
                self._space(repo, rest, body)

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        digest = self.hub.digest(data)
        entry = {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
        if len(data) >= self.hub.lfs_from:
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def _commit(self, repo: Repo, repo_id: str, body: bytes) -> None:
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
            else:
                return self.answer(400, {"error": f"unknown operation {line['key']}"})
        url = f"{self.hub.url}/{repo_id}/commit/{SHA}"
        self.answer(200, {"commitUrl": url, "commitOid": SHA, "hookOutput": ""})

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _file(self, repo: Repo | None, name: str) -> None:
        if repo is None:
            return self.answer(404, {}, X_Error_Code="RepoNotFound")
        if name not in repo.files:
            return self.answer(404, {}, X_Error_Code="EntryNotFound")
        data = repo.files[name]
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        etag = f'"{self.hub.digest(data)}"'
        headers = {"ETag": etag, "X_Repo_Commit": SHA, "Content_Type": "application/octet-stream"}
        if self.command == "HEAD":
            return self.answer(200, data, **headers)
        self.hub.requests.append(f"{name} from {first}")
        if name in self.hub.cut:
            return self.drop(data[first : self.hub.cut[name]], len(data) - first, **headers)
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.answer(206 if first else 200, data[first:], **headers)

    def drop(self, part: bytes, announced: int, **headers: str) -> None:
        """A part of what is announced, and then nothing more."""
        if part:
            self.answer(200, part, **headers, Content_Length=str(announced))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _space(self, repo: Repo, rest: list[str], body: bytes) -> None:
        asked = json.loads(body) if body else {}
        match (self.command, *rest):
            case ("GET", "runtime"):
                stage = repo.stages.pop(0) if len(repo.stages) > 1 else repo.stages[0]
                hardware = {"current": repo.hardware, "requested": repo.hardware}
                self.answer(200, {"stage": stage, "hardware": hardware, "gcTimeout": repo.sleep_time})
            case ("GET", "variables" | "secrets" as what):
                kept = getattr(repo, what)
                shown = {
                    k: {"key": k} | ({"value": v} if what == "variables" else {}) for k, v in kept.items()
                }
                self.answer(200, shown)
            case ("POST", "variables" | "secrets" as what):
                getattr(repo, what)[asked["key"]] = asked["value"]
                self.answer(200)
            case ("DELETE", "variables" | "secrets" as what):
                del getattr(repo, what)[asked["key"]]
                self.answer(200)
            case ("POST", "hardware"):
                repo.hardware, repo.sleep_time = asked["flavor"], asked.get("sleepTimeSeconds")
                self.answer(200, {"stage": "BUILDING", "hardware": {"requested": repo.hardware}})
            case ("POST", "sleeptime"):
                repo.sleep_time = asked["seconds"]
                self.answer(200, {"stage": "BUILDING", "hardware": {"requested": repo.hardware}})
            case _:
                self.answer(404, {"error": f"{self.command} {rest} is not spoken here"})


@contextmanager
def serving(hub: Hub):
    """Serves the hub on a free local port."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
