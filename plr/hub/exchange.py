"""One request to the hub and its answer, over as many connections as it takes. `plr.hub.client` says how and why."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator

import httpx2
from huggingface_hub.utils import parse_ratelimit_headers

from plr.hub.patience import Patience, RequestFailed

__all__ = ["Exchange"]

LOG = logging.getLogger(__name__)
PROGRESS = 64 * 1024
"""Bytes after which failures are counted anew."""
LOG_PAUSES_OVER = 2.0
"""Pauses this long (seconds) are logged."""
TEMPORARY = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
"""Failures that may pass."""
TEMPORARY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_ANSWERED: set[str] = set()
"""Hosts (and ports) that have answered in this process."""


class TooSlow(httpx2.TimeoutException):
    """Some bytes came, but fewer than `Patience.slowest`."""


class Exchange:
    """One request and its answer, over as many connections as it takes."""

    def __init__(
        self, send: Callable[[httpx2.Request], httpx2.Response], request: httpx2.Request, patience: Patience
    ) -> None:
        has_answered = request.url.netloc.decode() in _ANSWERED
        silence = patience.silence if has_answered else min(10.0, patience.silence)
        wait = {"connect": min(10.0, patience.silence / 2), "read": silence, "write": silence, "pool": silence}
        request.extensions = {**request.extensions, "timeout": wait}
        if request.method == "GET":
            request.headers["Accept-Encoding"] = "identity"
        self.send, self.request, self.patience = send, request, patience
        self.failures, self.since, self.began = 0, 0, time.monotonic()

    def response(self) -> httpx2.Response:
        """Request the answer; the body of a GET is read by `_Body`."""
        response = self.ask(self.request)
        if response.status_code == 200:  # the whole, whatever range was asked for
            self.request.headers.pop("Range", None)
        if self.request.method == "GET" and response.status_code in (200, 206) and _range(self.request):
            response.stream = _Body(self, response)
        return response

    def ask(self, request: httpx2.Request) -> httpx2.Response:
        """Request until there is an answer that is not a failure which may pass.

        Raises:
            RequestFailed: there is none.
        """
        while True:
            try:
                response = self.send(request)
            except TEMPORARY as error:
                self.pause_after(_words(error), cause=error)
                continue
            _ANSWERED.add(request.url.netloc.decode())
            if response.status_code not in TEMPORARY_STATUSES:
                return response
            wait = _requested_wait(response)
            response.close()
            self.pause_after(f"it answers {response.status_code} {response.reason_phrase}".rstrip(), wait)

    def resume(self, received: int) -> tuple[httpx2.Response, int] | None:
        """Request the rest of the body behind `received` bytes.

        Returns it and the number of known bytes that come before it; None if there is no rest, whatever length was promised.
        """
        first, last = _range(self.request) or (0, None)
        again = httpx2.Request(
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
        raise RequestFailed(
            f"it broke off at byte {first + received}, and the rest is refused ({response.status_code})"
        )

    def progressed(self, count: int) -> None:
        """Note `count` bytes of progress."""
        self.since += count
        if self.since >= PROGRESS:
            self.failures = 0

    def pause_after(self, failure: str, wait: float | None = None, cause: Exception | None = None) -> None:
        """Pause before the next try, for `wait` seconds if the host asks for that.

        Raises:
            RequestFailed: this was the last try.
        """
        self.failures, self.since = self.failures + 1, 0
        patience, host = self.patience, _host(cause, self.request)
        if wait is not None and wait > patience.longest_pause:
            raise RequestFailed(
                f"{failure} and asks to wait for {wait:.0f} s", hint="try again then (hf auth login raises limits)"
            )
        reached = self.request.url.netloc.decode() in _ANSWERED
        if self.failures >= (patience.tries if reached else min(2, patience.tries)):
            seconds, tries = time.monotonic() - self.began, f"{self.failures} tries" if self.failures > 1 else "one try"
            raise RequestFailed(
                f"{failure}; {tries} in {seconds:.0f} s ({host})", reached=reached, certificate=_is_certificate(cause)
            ) from cause
        pause = min(patience.longest_pause, patience.pause * 2 ** (self.failures - 1) if wait is None else wait)
        if pause >= LOG_PAUSES_OVER:
            LOG.warning("%s: %s; trying again in %.0f s", host, failure, pause)
        time.sleep(pause)


class _Body(httpx2.SyncByteStream):
    """The bytes of one answer, across connections."""

    def __init__(self, exchange: Exchange, response: httpx2.Response) -> None:
        self.exchange, self.stream = exchange, _sync(response)

    def __iter__(self) -> Iterator[bytes]:
        exchange, received, known = self.exchange, 0, 0
        while True:
            try:
                for chunk in _not_too_slow(self.stream, exchange.patience):
                    if known >= len(chunk):
                        known -= len(chunk)
                        continue
                    rest, known = chunk[known:], 0
                    received += len(rest)
                    exchange.progressed(len(rest))
                    yield rest
                return
            except TEMPORARY as error:
                self.close()
                exchange.pause_after(f"{_words(error)}, at byte {received}", cause=error)
                resumed = exchange.resume(received)
                if resumed is None:
                    return
                self.stream, known = _sync(resumed[0]), resumed[1]

    def close(self) -> None:
        self.stream.close()


def _sync(response: httpx2.Response) -> httpx2.SyncByteStream:
    """Pass the body on as it comes from a client that is not asynchronous."""
    assert isinstance(response.stream, httpx2.SyncByteStream)
    return response.stream


def _not_too_slow(stream: Iterable[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass `stream` on for as long as every `window` brings what `slowest` asks for; the reader's own time does not count."""
    spent, count, asked = 0.0, 0, time.monotonic()
    for chunk in stream:
        spent, count = spent + time.monotonic() - asked, count + len(chunk)
        if spent > patience.window:
            if count < patience.slowest * spent:
                raise TooSlow(f"only {count} bytes came in {spent:.0f} s")
            spent, count = 0.0, 0
        yield chunk
        asked = time.monotonic()


def _words(error: Exception) -> str:
    if isinstance(error, httpx2.ReadTimeout):
        return "it does not answer"
    if isinstance(error, (httpx2.ConnectTimeout, httpx2.PoolTimeout)):
        return "no connection comes about"
    return str(error) or type(error).__name__


def _host(error: Exception | None, request: httpx2.Request) -> str:
    """Name the host that failed: the one that was asked, or the one to which it pointed."""
    try:
        return error.request.url.host  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return request.url.host


def _is_certificate(error: BaseException | None) -> bool:
    """Tell whether a refused certificate is behind `error`."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _range(request: httpx2.Request) -> tuple[int, int | None] | None:
    """Read the first byte that a request asks for, and the last, if it names one; None for a range of another form."""
    text = request.headers.get("Range", "bytes=0-")
    match = re.match(r"bytes=(\d+)-(\d*)$", text)
    return (int(match[1]), int(match[2]) if match[2] else None) if match else None


def _requested_wait(response: httpx2.Response) -> float | None:
    """Read the seconds that the hub asks to wait for: `Retry-After`, or the `t` of its `RateLimit` header."""
    after = response.headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return None if limit is None else float(limit.reset_in_seconds)
