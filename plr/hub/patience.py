"""A client for the hub that survives a bad network, and gives up in bounded time.

How it works:

1. ``patient()`` lends the hub library a client whose ``send`` is wrapped: whatever the library asks for goes through here.
2. An answer that may pass (no connection, silence, 408, 429, 5xx) is asked for again after a pause of 1, 2, 4, ... seconds, or as
   long as ``Retry-After`` says. A hub that has never answered is asked twice: there is no network, and no use in waiting.
3. The body is read through here too. When the connection is cut, reset, silent or slower than 1 kB a second, the rest is asked for
   with ``Range`` from the byte that came last, and the reader above sees one unbroken stream.
4. Failures count in a row; 64 kB of progress start the count anew. So the time is bounded: at most ``tries`` times ``silence``
   for each 64 kB. At the end stands :class:`HubError`, which the hub library does not take for one of its own to try again.

What it gives up: gzip, as a compressed body cannot be resumed. Whether the bytes are right is for :mod:`plr.hub.files` to say.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plr.errors import ConfigError

if TYPE_CHECKING:
    import httpx2

__all__ = ["HubError", "Patience", "patient"]

LOG = logging.getLogger(__name__)
PROGRESS = 64 * 1024
SAID = 2.0
"""Seconds of a pause from which on it is said why nothing happens."""
ASIDE = "/api/agent-harnesses"
"""What the library asks on its own account, and does without: tried once."""
_ANSWERED: set[str] = set()
"""Hosts (and ports) that have answered in this process."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})


class HubError(Exception):
    """The hub could not be asked. ``reached`` says whether it has answered anything; ``hint`` what would help."""

    def __init__(self, message: str, *, reached: bool = True, hint: str | None = None) -> None:
        super().__init__(message)
        self.reached, self.hint = reached, hint


@dataclass(frozen=True)
class Patience:
    """How long to wait for what; times in seconds."""

    silence: float = 20.0
    """Without a byte; half of it for a connection. 10 s at most for that, and for a hub that has never answered."""
    tries: int = 5
    """In a row, without progress."""
    pause: float = 1.0
    """Before the second try; doubled each time."""
    longest_pause: float = 60.0
    """Whoever asks for a longer one (``Retry-After``) is not waited for."""
    slowest: float = 1024.0
    """Bytes a second, over ``window`` seconds."""
    window: float = 60.0

    @classmethod
    def of_environment(cls) -> Patience:
        """The defaults, or ``PLR_HUB_TIMEOUT`` (seconds of silence) and ``PLR_HUB_TRIES``.

        Raises:
            ConfigError: one of them is no positive number.
        """
        silence, tries = _number("PLR_HUB_TIMEOUT", cls.silence), _number("PLR_HUB_TRIES", cls.tries)
        return cls(silence=silence, tries=max(1, int(tries)), window=min(cls.window, 3 * silence))


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else float(default)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {text!r}", expected="a positive number")
    return value


class _Lent:
    """How often the client is lent, and the factory that was there before."""

    lock = threading.Lock()
    depth = 0
    before: Any = None


@contextmanager
def patient(patience: Patience | None = None) -> Iterator[None]:
    """Inside, whatever the hub library asks for is asked with ``patience`` (that of the environment)."""
    from huggingface_hub.utils import _http

    patience = patience or Patience.of_environment()
    with _Lent.lock:
        if _Lent.depth == 0:
            _Lent.before = before = _http._GLOBAL_CLIENT_FACTORY
            _http.set_client_factory(lambda: _wrapped(before(), patience))
        _Lent.depth += 1
    try:
        yield
    finally:
        with _Lent.lock:
            _Lent.depth -= 1
            if _Lent.depth == 0:
                _http.set_client_factory(_Lent.before)


def _wrapped(client: httpx2.Client, patience: Patience) -> httpx2.Client:
    """``client`` with a ``send`` of ours; its proxies, certificates and hooks stay."""
    send = client.send

    def patiently(request: httpx2.Request, *, stream: bool = False, **more: Any) -> httpx2.Response:
        if request.url.path.endswith(ASIDE):
            return send(request, stream=stream, **more)
        response = _Exchange(lambda one: send(one, stream=True, **more), request, patience).response()
        if not stream:
            try:
                response.read()
            finally:
                response.close()
        return response

    client.send = patiently  # type: ignore[method-assign]
    return client


class _Exchange:
    """One request and its answer, over as many connections as it takes."""

    def __init__(
        self, send: Callable[[httpx2.Request], httpx2.Response], request: httpx2.Request, patience: Patience
    ) -> None:
        known = request.url.netloc.decode() in _ANSWERED
        silence = patience.silence if known else min(10.0, patience.silence)
        wait = {"connect": min(10.0, patience.silence / 2), "read": silence, "write": silence, "pool": silence}
        request.extensions = {**request.extensions, "timeout": wait}
        if request.method == "GET":
            request.headers["Accept-Encoding"] = "identity"
        self.send, self.request, self.patience = send, request, patience
        self.failures, self.since, self.began = 0, 0, time.monotonic()

    def response(self) -> httpx2.Response:
        """The answer; the body of a GET is read through :class:`_Body`."""
        response = self.ask(self.request)
        if response.status_code == 200:  # the whole, whatever range was asked for
            self.request.headers.pop("Range", None)
        if self.request.method == "GET" and response.status_code in (200, 206) and _range(self.request):
            response.stream = _body(self, response)
        return response

    def ask(self, request: httpx2.Request) -> httpx2.Response:
        """An answer that is not a failure which may pass.

        Raises:
            HubError: there is none.
        """
        while True:
            try:
                response = self.send(request)
            except _passing() as error:
                self.failed(_words(error), host=_host(error, request))
                continue
            _ANSWERED.add(request.url.netloc.decode())
            if response.status_code not in PASSING:
                return response
            wait = _asked_wait(response)
            response.close()
            self.failed(f"it answers {response.status_code} {response.reason_phrase}".rstrip(), wait)

    def resume(self, received: int) -> tuple[httpx2.Response, int] | None:
        """The rest of the body behind ``received`` bytes, and how many bytes that are known already come before it; None if there
        is no rest, whatever length was promised."""
        first, last = _range(self.request) or (0, None)
        again = type(self.request)(
            "GET",
            self.request.url,
            headers=[(k, v) for k, v in self.request.headers.multi_items() if k.lower() != "range"]
            + [("Range", f"bytes={first + received}-{'' if last is None else last}")],
            extensions=self.request.extensions,
        )
        response = self.ask(again)
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status_code == 206 and start and int(start[1]) == first + received:
            return response, 0
        if response.status_code == 200 and first == 0:
            return response, received
        response.close()
        if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{first + received}":
            return None
        raise HubError(f"it broke off at byte {first + received}, and the rest is refused ({response.status_code})")

    def came(self, count: int) -> None:
        """Note ``count`` bytes of progress."""
        self.since += count
        if self.since >= PROGRESS:
            self.failures = 0

    def failed(self, what: str, wait: float | None = None, host: str | None = None) -> None:
        """Pause before the next try.

        Raises:
            HubError: there is none.
        """
        self.failures, self.since = self.failures + 1, 0
        patience, host = self.patience, host or self.request.url.host
        if wait is not None and wait > patience.longest_pause:
            raise HubError(
                f"{what} and asks to wait for {wait:.0f} s", hint="try again then (hf auth login raises limits)"
            )
        reached = self.request.url.netloc.decode() in _ANSWERED
        if self.failures >= (patience.tries if reached else min(2, patience.tries)):
            seconds, tries = time.monotonic() - self.began, f"{self.failures} tries" if self.failures > 1 else "one try"
            raise HubError(f"{what}; {tries} in {seconds:.0f} s ({host})", reached=reached)
        pause = min(patience.longest_pause, patience.pause * 2 ** (self.failures - 1) if wait is None else wait)
        if pause >= SAID:
            LOG.warning("%s: %s; trying again in %.0f s", host, what, pause)
        time.sleep(pause)


def _body(exchange: _Exchange, response: httpx2.Response) -> httpx2.SyncByteStream:
    import httpx2

    class Body(httpx2.SyncByteStream):
        """The bytes of one answer, across connections."""

        def __init__(self) -> None:
            self.now = response.stream

        def __iter__(self) -> Iterator[bytes]:
            received = known = 0
            while True:
                try:
                    for chunk in _not_too_slow(self.now, exchange.patience):
                        if known >= len(chunk):
                            known -= len(chunk)
                            continue
                        rest, known = chunk[known:], 0
                        received += len(rest)
                        exchange.came(len(rest))
                        yield rest
                    return
                except _passing() as error:
                    self.close()
                    exchange.failed(f"{_words(error)}, at byte {received}", host=_host(error, exchange.request))
                    rest_of_it = exchange.resume(received)
                    if rest_of_it is None:
                        return
                    self.now, known = rest_of_it[0].stream, rest_of_it[1]

        def close(self) -> None:
            self.now.close()  # type: ignore[union-attr]

    return Body()


def _not_too_slow(stream: Any, patience: Patience) -> Iterator[bytes]:
    """``stream``, for as long as every ``window`` brings what ``slowest`` asks for; the reader's own time does not count."""
    import httpx2

    spent, count, asked = 0.0, 0, time.monotonic()
    for chunk in stream:
        spent, count = spent + time.monotonic() - asked, count + len(chunk)
        if spent > patience.window:
            if count < patience.slowest * spent:
                raise httpx2.ReadTimeout(f"only {count} bytes came in {spent:.0f} s")
            spent, count = 0.0, 0
        yield chunk
        asked = time.monotonic()


def _passing() -> tuple[type[Exception], ...]:
    import httpx2

    return (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


def _words(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    if name == "ReadTimeout" and "bytes" not in text:
        return "it does not answer"
    if name in ("ConnectTimeout", "PoolTimeout"):
        return "no connection comes about"
    return text or name


def _host(error: Exception, request: httpx2.Request) -> str:
    """Who failed: the host that was asked, or the one to which it pointed."""
    try:
        return error.request.url.host  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return request.url.host


def _range(request: httpx2.Request) -> tuple[int, int | None] | None:
    """The first byte that a request asks for, and the last, if it names one; None for a range of another form."""
    text = request.headers.get("Range", "bytes=0-")
    found = re.match(r"bytes=(\d+)-(\d*)$", text)
    return (int(found[1]), int(found[2]) if found[2] else None) if found else None


def _asked_wait(response: httpx2.Response) -> float | None:
    """Seconds that the hub asks to wait for: ``Retry-After``, or the ``t`` of its ``RateLimit`` header."""
    after = response.headers.get("Retry-After", "")
    limit = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", "")) if response.status_code == 429 else None
    text = after if after.isdigit() else limit[1] if limit else None
    return None if text is None else float(text)
