"""Clients of the hub on localhost: the hub libraries of this process, and the environment of another.

Time: a slow machine is no fault. A client that :func:`point` has set up is told when a fault makes the hub fall silent
(``fake_hub.SILENT``), and takes that alone for silence: no test waits for a clock, and none fails when a healthy answer comes late.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from fake_hub import SILENT
from huggingface_hub.utils import _http
from huggingface_hub.utils._http import hf_request_event_hook


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """Of a process that knows no other hub, no other cache and no proxy, whatever this one was told."""
    ours = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PLR_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PLR_HOME": str(home / "plr")}
    return kept | here | {"HF_HUB_DISABLE_XET": "1", "COLUMNS": "400", "PLR_HUB_TIMEOUT": "600"}


class _Told(httpcore2.NetworkStream):
    """A connection on which reading ends when something comes, or when the hub has fallen silent, however long either takes."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self.stream, self.socket = stream, stream.get_extra_info("socket")
        self.port = self.socket.getsockname()[1]
        SILENT.discard(self.port)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            silent = self.port in SILENT  # asked first: what the hub sent before it fell silent is there by now
            if select.select([self.socket], [], [], 0 if silent else 0.02)[0]:
                return self.stream.read(max_bytes, timeout)
            if silent:
                assert timeout is not None, "a client that would wait for ever"
                raise httpcore2.ReadTimeout("timed out")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, timeout)

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class _Backend(httpcore2.SyncBackend):
    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any) -> _Told:
        return _Told(super().connect_tcp(host, port, None, *rest, **more))


def point(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Make the hub libraries of this process ask ``endpoint``, with caches in ``home`` and three tries."""
    import datasets
    from datasets import config
    from huggingface_hub import constants

    from plr.hub import exchange

    settings = {"ENDPOINT": endpoint, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": False}
    settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}"}
    settings |= {"AGENT_HARNESSES_PATH": str(home / "agents.json")}
    for name, value in (settings | {"HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(exchange, "_ANSWERED", set())  # a hub of an earlier test may have had the same port
    wait(monkeypatch)
    datasets.disable_progress_bars()


def wait(monkeypatch: pytest.MonkeyPatch, *, silence: float | None = None, window: float = 60.0) -> None:
    """Say how long to wait: as long as the hub is not silent, or by the clock.

    With ``silence`` that is so many seconds: for a test in which it does not matter when healthy answers come. ``window``
    is that of :class:`plr.hub.Patience`.
    """
    from plr.hub import Patience

    patience = Patience(silence=silence or 20.0, tries=3, pause=0.01, longest_pause=0.5, window=window)
    monkeypatch.setattr(Patience, "of_environment", lambda: patience)

    def client() -> httpx2.Client:
        """As the library's own, but for proxies, and for certificates, which take a tenth of a second to read."""
        transport = httpx2.HTTPTransport(verify=False)
        if silence is None:
            transport._pool._network_backend = _Backend()
        hooks = {"request": [hf_request_event_hook]}
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None, transport=transport)

    use_client(monkeypatch, client)


def use_client(monkeypatch: pytest.MonkeyPatch, factory: Callable[[], httpx2.Client]) -> None:
    """Let the hub library make its client by `factory` until the end of the test."""
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", factory)
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", None)
