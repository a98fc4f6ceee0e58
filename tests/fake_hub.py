"""A hub on localhost: the part of its protocol that huggingface_hub and datasets use, and the ways a network fails.

A :class:`FakeHub` holds repositories (bytes by path) and :class:`Fault` s. Large files (``lfs``) are answered as the hub does: the
listing gives their sha256, ``/resolve/`` redirects to a store of content. Other files have the sha1 of a git blob. Every request
is written down before it is answered. ``serve`` is the short form for one folder.
The client's side of it is ``hub_client``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
LFS = (".parquet", ".safetensors", ".bin")
PAGE = b"<html>Please log in to the hotel's network</html>"
SILENT: set[int] = set()
"""The ports of clients that wait for what will never come: the hub has sent all it will."""

What = Literal[
    "cut",  # half of what was asked for, then the connection is closed
    "reset",  # the same, closed by a reset
    "stop",  # headers, then the connection is closed
    "stall",  # half of what was asked for, then silence
    "silent",  # not even headers
    "dribble",  # a byte now and then
    "long",  # Content-Length promises more than there is
    "short",  # Content-Length promises half, and half is sent
    "unframed",  # no Content-Length, half of the bytes, an orderly end
    "wrong",  # other bytes of the same length
    "status",  # `status` with `headers`
    "page",  # a page of somebody else's, status 200
]


@dataclass
class Fault:
    """What goes wrong with requests whose path holds ``where``: the first ``times`` of them, or all."""

    what: What
    where: str = "/content/"
    times: int | None = None
    method: str = "GET"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    range: str | None
    token: str | None = None


@dataclass
class Repo:
    files: Mapping[str, bytes]
    kind: str = "datasets"
    revisions: Mapping[str, str] = field(default_factory=lambda: {"main": SHA})
    gate: int | None = None
    """Of a repository that asks for a licence: 401 for one who is not logged in, 403 for one who has not accepted."""

    def oid(self, path: str) -> str:
        body = self.files[path]
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        body = self.files[path]
        entry = {"type": "file", "path": path, "size": len(body), "oid": self.oid(path)}
        if path.endswith(LFS):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry

    def folders(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """The entries of those of ``paths`` that are folders."""
        found = {path for path in paths for file in self.files if file.startswith(f"{path}/")}
        return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(found)]


class FakeHub:
    """The repositories by name, what goes wrong, and what was asked."""

    def __init__(self, repos: Mapping[str, Repo], faults: list[Fault] | None = None) -> None:
        self.repos = dict(repos)
        self.faults = faults or []
        self.asked: list[Asked] = []
        self.lines: list[str] = []
        self.ranges = True
        """Whether it knows ranges: if not, it sends the whole, whatever is asked for."""
        self.prefix = ""
        """Before every path: of a mirror that is not alone on its host."""
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.endpoint = self.store = ""
        self.uploaded: dict[str, bytes] = {}
        """Large files by sha256, before the commit that names them."""
        self.private: dict[str, bool] = {}
        self.writers: set[str] | None = None
        """The ``Authorization`` of those who may write; None: whoever asks."""

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.where in path and fault.method == method and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def content(self, sha256: str) -> bytes | None:
        bodies = (body for repo in self.repos.values() for body in repo.files.values())
        return next((body for body in bodies if hashlib.sha256(body).hexdigest() == sha256), None)

    def downloads(self) -> list[Asked]:
        """The requests for bytes of files."""
        return [
            one for one in self.asked if one.method == "GET" and ("/content/" in one.path or "/resolve/" in one.path)
        ]

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        server = _Server(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.endpoint, self.store = (f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost"))
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle: that is what they are tested for."""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.body = self._read()
            self._answer()

        def do_PUT(self) -> None:
            self.body = self._read()
            self._answer()

        def _read(self) -> bytes:
            if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self) -> None:
            asked = (self.headers.get("Range"), self.headers.get("Authorization"))
            hub.asked.append(Asked(self.command, self.path, *asked))
            hub.lines.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path).removeprefix(hub.prefix)
            fault = hub.fault(self.command, path)
            if fault is not None and fault.what in ("silent", "status", "page"):
                return self._refuse(fault)
            if not urlsplit(self.path).path.startswith((hub.prefix, "/content/")):
                return self._send(404, b"not here")
            if self.command in ("POST", "PUT") and (answer := self._written(path)) is not None:
                return self._send(answer[0], json.dumps(answer[1]).encode(), answer[2])
            if path.startswith("/content/") and (body := hub.content(path.removeprefix("/content/"))) is not None:
                return self._bytes(body, fault)
            match = re.match(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?$", path)
            if match:
                return self._api(*match.groups())
            match = re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/convert/parquet|[^/]+)/(.+)$", path)
            if match:
                return self._resolve((match[1] or "models/").rstrip("/"), match[2], match[3], match[4], fault)
            return self._send(404, b"no", {"X-Error-Code": "RepoNotFound"})

        def _written(self, path: str) -> tuple[int, Any, dict[str, str]] | None:
            """Answer what writes: a new repository, and a commit with the files before it. None: it is no such request."""
            if self.command == "PUT" and path.startswith("/upload/"):
                if hashlib.sha256(self.body).hexdigest() != path.removeprefix("/upload/"):
                    return 400, {"error": "other bytes"}, {}
                hub.uploaded[path.removeprefix("/upload/")] = self.body
                return 200, {}, {}
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}, {}
            if path == "/api/repos/create":
                asked = json.loads(self.body)
                name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
                if hub.writers is not None and self.headers.get("Authorization") not in hub.writers:
                    status = 401 if self.headers.get("Authorization") is None else 403
                    return status, {"error": "no"}, {"X-Error-Message": "you may not write there"}
                if name in hub.repos:
                    return 409, {"error": "it is there", "url": f"{hub.endpoint}/{name}"}, {}
                hub.repos[name] = Repo({}, "models")
                hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
                return 200, {"url": f"{hub.endpoint}/{name}", "name": name, "id": "1"}, {}
            found = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)$", path)
            batch = re.match(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$", path)
            if batch:
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.endpoint}{hub.prefix}/upload/{one['oid']}"}}}
                    for one in json.loads(self.body)["objects"]
                ]
                return 200, {"transfer": "basic", "objects": objects}, {}
            if not found:
                return None
            name, verb, branch = found.groups()
            repo = hub.repos[name]
            if verb == "branch":
                repo.revisions = {**repo.revisions, branch: SHA}
                return 200, {}, {}
            if verb == "preupload":
                files = json.loads(self.body)["files"]
                modes = {one["path"]: "lfs" if one["path"].endswith((*LFS, ".gguf")) else "regular" for one in files}
                answer = [{"path": one, "uploadMode": mode, "shouldIgnore": False} for one, mode in modes.items()]
                return 200, {"files": answer}, {}
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            new = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in hub.uploaded:
                        return 400, {"error": "not uploaded"}, {}
                    new[value["path"]] = hub.uploaded[value["oid"]]
            repo.files = {**repo.files, **new}
            return (
                200,
                {
                    "success": True,
                    "commitOid": SHA,
                    "commitUrl": f"{hub.endpoint}/{name}/commit/{SHA}",
                    "hookOutput": "",
                },
                {},
            )

        def _repo(self, kind: str, name: str) -> Repo | None:
            repo = hub.repos.get(name)
            if repo is None or repo.kind != kind:
                self._send(401, b"no", {"X-Error-Code": "RepoNotFound"})
                return None
            return repo

        def _commit(self, repo: Repo, rest: str) -> tuple[str, str] | None:
            for name, sha in {**repo.revisions, **{sha: sha for sha in repo.revisions.values()}}.items():
                if rest == name or rest.startswith(f"{name}/"):
                    return sha, rest.removeprefix(name).lstrip("/")
            self._send(404, b"no", {"X-Error-Code": "RevisionNotFound"})
            return None

        def _api(self, kind: str, name: str, verb: str | None, rest: str | None) -> None:
            if (repo := self._repo(kind, name)) is None or (found := self._commit(repo, rest or "main")) is None:
                return None
            entries = [repo.entry(path) for path in sorted(repo.files)]
            if verb == "paths-info":
                asked = json.loads(self.body)["paths"]
                entries = [entry for entry in entries if entry["path"] in asked] + repo.folders(asked)
            if verb == "tree" and "recursive=true" not in self.path.lower():
                depth = found[1].count("/") + 1 if found[1] else 0
                entries += repo.folders({path.rsplit("/", 1)[0] for path in repo.files if "/" in path})
                entries = [entry for entry in entries if entry["path"].count("/") == depth]
            if verb == "tree" and found[1]:
                entries = [entry for entry in entries if entry["path"].startswith(f"{found[1]}/")]
                if not entries:
                    return self._send(404, b"no", {"X-Error-Code": "EntryNotFound"})
            siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
            info: Any = {"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []}
            return self._send(200, json.dumps(info if verb in (None, "revision") else entries).encode())

        def _resolve(self, kind: str, name: str, revision: str, path: str, fault: Fault | None) -> None:
            if (repo := self._repo(kind, name)) is None or (found := self._commit(repo, revision)) is None:
                return None
            if repo.gate is not None:
                return self._send(repo.gate, b"no", {"X-Error-Code": "GatedRepo"})
            if path not in repo.files:
                return self._send(404, b"no", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
            body = repo.files[path]
            if not path.endswith(LFS):
                return self._bytes(body, fault, {"ETag": f'"{repo.oid(path)}"', "X-Repo-Commit": found[0]})
            sha256 = hashlib.sha256(body).hexdigest()
            linked = {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha256}"', "X-Repo-Commit": found[0]}
            return self._send(302, b"", linked | {"Location": f"{hub.store}/content/{sha256}"})

        def _refuse(self, fault: Fault) -> None:
            if fault.what == "silent":
                self._fall_silent()
            elif fault.what == "page":
                self._send(200, PAGE)
            else:
                self._send(fault.status, b"no", dict(fault.headers))

        def _bytes(self, body: bytes, fault: Fault | None, headers: Mapping[str, str] | None = None) -> None:
            """``body``, or the range of it that was asked for, and what ``fault`` makes of it."""
            what = fault.what if fault is not None else None
            start, status, more = 0, 200, dict(headers or {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'})
            asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
            if asked and hub.ranges:
                start, end = int(asked[1]), int(asked[2] or len(body) - 1)
                if start >= len(body):
                    return self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                more["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                status, body = 206, body[start : end + 1]
            if what == "wrong":
                body = bytes(byte ^ 1 for byte in body)
            half = body[: len(body) // 2]
            if what in ("long", "short", "unframed"):
                length = {"long": len(body) + 10, "short": len(half), "unframed": None}[what]
                self._head(status, length, more)
                self._write(body if what == "long" else half)
                self.close_connection = True
                return None
            self._head(status, len(body), more)
            if what in ("cut", "reset", "stall"):
                self._write(half)
            if what == "dribble":
                for index in range(len(body)):
                    self._write(body[index : index + 1])
                    if hub.closing.wait(0.05):
                        break
            if what == "stall":
                self._fall_silent()
            if what == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            if what is None or what == "wrong":
                self._write(body)
            else:
                self.close_connection = True
            return None

        def _fall_silent(self) -> None:
            SILENT.add(self.client_address[1])
            hub.closing.wait()
            self.close_connection = True

        def _head(self, status: int, length: int | None, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            if length is None:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _write(self, body: bytes) -> None:
            if self.command == "HEAD":
                return
            try:
                self.wfile.write(body)
                self.wfile.flush()
            except OSError:  # the client has gone
                self.close_connection = True

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self._head(status, len(body), {"Content-Type": "application/json", **(headers or {})})
            self._write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    return Handler


@contextmanager
def serve(repo: str, folder: Path, gated: str = "org/gated") -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder`` as the model ``repo`` at commit SHA; yields the address and the list of requests as they come."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
    hub = FakeHub({repo: Repo(files, "models"), gated: Repo({"config.json": b"{}"}, "models", gate=403)})
    hub.faults.append(Fault("status", f"/api/models/{gated}", status=403, headers={"X-Error-Code": "GatedRepo"}))
    with hub.running():
        yield hub.endpoint, hub.lines
