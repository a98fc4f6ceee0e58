"""Retry and resume the requests of the hub library, in bounded time.

How it works:

1. `patient()` wraps `send` of the client that the hub library shares (`get_session`), whoever set it up: all its requests go
   through here.
2. An answer that may pass (no connection, silence, 408, 429, 5xx) is asked for again after a pause of 1, 2, 4, ... seconds, or as
   long as `Retry-After` says. A hub that has never answered is asked twice: there is no network, and no use in waiting.
3. The body is read through here too. When the connection is cut, reset, silent or slower than 1 kB a second, the rest is asked for
   with `Range` from the byte that came last, and the reader above sees one unbroken stream (`plr.hub.exchange`).
4. Failures count in a row; 64 kB of progress start the count anew. So the time is bounded: at most `tries` times `silence`
   for each 64 kB. At the end stands `RequestFailed`, which the hub library does not take for one of its own to try again.

Why the library's own retries do not suffice (huggingface_hub 2.4): its client has no timeout and `HfApi.list_repo_tree` takes none,
so a silent hub is waited for without end; a download that is reset, or answered by one status 500, fails at once.

What it gives up: gzip, as a compressed body cannot be resumed. Whether the bytes are right is for `plr.hub.files` to say.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from plr.errors import HubError
from plr.hub.patience import Patience

if TYPE_CHECKING:
    import httpx2

__all__ = ["patient", "proxy_variables"]

TELEMETRY_PATH = "/api/agent-harnesses"
"""Optional request of the hub library for itself; never retried."""


class _Wrapping:
    """The wrapped client: how many callers of `patient` use it, and what unwraps it after the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.callers = 0
        self.undo: Callable[[], None] | None = None


_WRAPPING = _Wrapping()


@contextmanager
def patient(patience: Patience | None = None) -> Iterator[None]:
    """Retry and resume every request of the hub library inside, with `patience` (that of the environment).

    Raises:
        HubError: the environment names a proxy or a token that cannot be used.
    """
    patience = patience or Patience.of_environment()
    with _WRAPPING.lock:
        if _WRAPPING.undo is None:
            _WRAPPING.undo = _wrap(_client(), patience)
        _WRAPPING.callers += 1
    try:
        yield
    finally:
        with _WRAPPING.lock:
            _WRAPPING.callers -= 1
            if _WRAPPING.callers == 0 and _WRAPPING.undo is not None:
                _WRAPPING.undo()
                _WRAPPING.undo = None


def proxy_variables() -> str:
    """Return the variables that send requests through a proxy. Their values may hold a password."""
    names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    return ", ".join(one for name in names for one in (name, name.lower()) if os.environ.get(one))


def _client() -> httpx2.Client:
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    if not build_hf_headers().get("authorization", "").isascii():
        raise HubError("the token of the hub holds a character that is in none", hint="hf auth login, or set HF_TOKEN")
    try:
        return get_session()
    except (ValueError, ImportError, httpx2.InvalidURL) as error:  # the address; the package that SOCKS needs
        reason = str(error).partition("\n")[0]
        raise HubError(
            f"the proxy that {proxy_variables() or 'the environment'} names cannot be used: {reason}",
            expected="http://HOST:PORT",
            hint="a SOCKS proxy needs one more package: pip install socksio",
        ) from error


def _wrap(client: httpx2.Client, patience: Patience) -> Callable[[], None]:
    """Let `client` retry and resume, with its own proxies, certificates and hooks; what is returned undoes it."""
    from plr.hub.exchange import Exchange  # httpx2 is loaded with the hub library, not before

    send, own = client.send, vars(client).get("send")

    def patient_send(request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        if request.url.path.endswith(TELEMETRY_PATH):
            return send(request, stream=stream, **options)
        response = Exchange(lambda one: send(one, stream=True, **options), request, patience).response()
        if not stream:
            try:
                response.read()
            finally:
                response.close()
        return response

    def undo() -> None:
        if own is None:
            del client.send  # that of its class is back
        else:
            client.send = own

    client.send = patient_send
    return undo
