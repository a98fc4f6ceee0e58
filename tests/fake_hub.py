"""A model hub on localhost: enough of the protocol for huggingface_hub to resolve, list and fetch one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repo: str, folder: Path, gated: str = "org/gated") -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder`` as ``repo`` at commit SHA; yields the address and the list of requests as they come."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, *, head: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{gated}"):
                self._send(403, b"gated", {"X-Error-Code": "GatedRepo"}, head)
            elif path.startswith(f"/api/models/{repo}/revision/") and not path.endswith(("main", SHA)):
                self._send(404, b"no", {"X-Error-Code": "RevisionNotFound"}, head)
            elif path.startswith(f"/api/models/{repo}"):
                files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
                tree = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": "0" * 40} for f in files]
                info: Any = tree if "/tree/" in path else {"id": repo, "modelId": repo, "sha": SHA, "siblings": files}
                self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, head)
            elif path.startswith(f"/{repo}/resolve/") and (file := folder / path.rsplit("/", 1)[1]).is_file():
                body = file.read_bytes()
                etag = hashlib.sha256(body).hexdigest()
                self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, head)
            else:
                self._send(404, b"no", {"X-Error-Code": "RepoNotFound"}, head)

        def _send(self, status: int, body: bytes, headers: dict[str, str], head: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
