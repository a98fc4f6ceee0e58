"""The client that survives, on answers that are made up: pauses, bounds, ranges, and what it leaves as it was."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from hub_client import use_client
from huggingface_hub import get_session, set_client_factory

import plr
from plr.errors import ConfigError
from plr.hub import exchange
from plr.hub.client import patient
from plr.hub.patience import Patience, RequestFailed

BODY = bytes(range(256)) * 2000
PATIENCE = Patience(silence=1, tries=4, pause=1, longest_pause=30)


class Broken(httpx2.SyncByteStream):
    """``body``, and then the connection is cut."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self.body
        raise httpx2.ReadError("cut")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client slept. Its clock alone is another one: ``time.sleep`` itself is every thread's."""
    slept: list[float] = []
    monkeypatch.setattr(exchange, "_ANSWERED", set())
    monkeypatch.setattr(exchange, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


def answering(answer: Callable[[httpx2.Request], httpx2.Response]) -> Callable[[], httpx2.Client]:
    return lambda: httpx2.Client(transport=httpx2.MockTransport(answer))


def ask(
    answer: Callable[[httpx2.Request], httpx2.Response], *, patience: Patience = PATIENCE, **headers: str
) -> httpx2.Response:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_client(monkeypatch, answering(answer))
        with patient(patience):
            return get_session().get("http://hub/file", headers=headers)


def in_turn(*answers: httpx2.Response | Exception) -> Callable[[httpx2.Request], httpx2.Response]:
    left = list(answers)

    def answer(request: httpx2.Request) -> httpx2.Response:
        value = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(value, Exception):
            raise value
        return httpx2.Response(value.status_code, headers=value.headers)

    return answer


def test_pauses_double_and_the_answer_is_the_last_one(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    busy = httpx2.Response(503)
    assert ask(in_turn(busy, httpx2.ReadTimeout("timed out"), busy, httpx2.Response(200))).status_code == 200
    assert pauses == [1, 2, 4]
    said = [
        "hub: it does not answer; trying again in 2 s",
        "hub: it answers 503 Service Unavailable; trying again in 4 s",
    ]
    assert caplog.messages == said


def test_what_the_hub_asks_to_wait_is_waited_if_it_is_not_too_long(pauses: list[float]) -> None:
    busy = httpx2.Response(429, headers={"Retry-After": "7"})
    assert ask(in_turn(busy, httpx2.Response(200))).status_code == 200
    assert pauses == [7]
    with pytest.raises(RequestFailed, match="429 Too Many Requests and asks to wait for 31 s") as e:
        ask(in_turn(httpx2.Response(429, headers={"Retry-After": "31"})))
    assert (e.value.reached, pauses) == (True, [7])


def test_a_hub_that_never_answered_is_asked_twice(pauses: list[float]) -> None:
    with pytest.raises(RequestFailed, match=r"refused; 2 tries in 1 s \(hub\)") as e:
        ask(in_turn(httpx2.ConnectError("refused")))
    assert (e.value.reached, pauses) == (False, [1])


@pytest.mark.parametrize("status", [200, 206, 302, 400, 401, 403, 404, 416])
def test_a_plain_answer_is_given_as_it_is(pauses: list[float], status: int) -> None:
    assert ask(in_turn(httpx2.Response(status))).status_code == status
    assert pauses == []


def test_an_error_that_no_second_try_would_change_passes(pauses: list[float]) -> None:
    with pytest.raises(httpx2.ProxyError):
        ask(in_turn(httpx2.ProxyError("407")))
    assert pauses == []


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("asked", [None, (1000, None), (1000, 400_000)])
def test_a_body_in_pieces_is_one_body(pauses: list[float], ranges: bool, asked: tuple[int, int | None] | None) -> None:
    """Whatever range was asked for; a server that knows no ranges gives the whole."""
    seen: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("Range"))
        assert request.headers["Accept-Encoding"] == "identity"
        first, last = (exchange._range(request) or (0, None)) if ranges else (0, None)
        body = BODY[first : None if last is None else last + 1]
        headers = {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(BODY)}"} if ranges and seen[-1] else {}
        # 70 kB more at every try: progress, so that the failures do not add up
        piece = body[:70_000] if ranges else body[: 70_000 * len(seen)]
        stream = httpx2.ByteStream(body) if piece == body else Broken(piece)
        return httpx2.Response(206 if headers else 200, headers=headers, stream=stream)

    first, last = asked or (0, None)
    more = {"Range": f"bytes={first}-{'' if last is None else last}"} if asked else {}
    whole = BODY[first : None if last is None else last + 1] if ranges else BODY
    assert ask(answer, **more).content == whole
    assert len(seen) > PATIENCE.tries
    assert set(pauses) == {1}
    if ranges:
        assert seen[1] == f"bytes={first + 70_000}-{'' if last is None else last}"


def test_little_by_little_is_no_progress(pauses: list[float]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        first, _ = exchange._range(request) or (0, None)
        headers = {"Content-Range": f"bytes {first}-{len(BODY) - 1}/{len(BODY)}"} if first else {}
        return httpx2.Response(206 if first else 200, headers=headers, stream=Broken(BODY[first : first + 1000]))

    with pytest.raises(RequestFailed, match=r"cut, at byte 4000; 4 tries in 7 s"):
        ask(answer)
    assert pauses == [1, 2, 4]


def test_a_range_of_another_form_is_left_to_whoever_asked(pauses: list[float]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(206, stream=Broken(BODY[-500:-200]))

    with pytest.raises(httpx2.ReadError):
        ask(answer, Range="bytes=-500")
    assert pauses == []


def test_a_hub_that_answered_once_has_all_tries_from_then_on(pauses: list[float]) -> None:
    assert ask(in_turn(httpx2.Response(200))).status_code == 200
    with pytest.raises(RequestFailed, match="4 tries"):
        ask(in_turn(httpx2.ConnectError("refused")))


def test_no_request_waits_for_ever(pauses: list[float]) -> None:
    """Ten seconds for a host that has never answered, ``silence`` for one that has; half of it for a connection."""
    waits: list[dict[str, float]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        waits.append(request.extensions["timeout"])
        return httpx2.Response(200)

    for silence in (30, 30, 4):
        ask(answer, patience=Patience(silence=silence))
    assert [(wait["connect"], wait["read"], wait["write"], wait["pool"]) for wait in waits] == [
        (10, 10, 10, 10),
        (10, 30, 30, 30),
        (2, 4, 4, 4),
    ]


def test_a_slow_stream_counts_as_a_failure_and_a_slow_reader_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(exchange, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def stream(seconds: float) -> Iterator[bytes]:
        for _ in range(100):
            now[0] += seconds
            yield b"x" * 100

    def read(stream: Iterator[bytes], own: float) -> int:
        count = 0
        for chunk in exchange._not_too_slow(stream, PATIENCE):
            now[0] += own
            count += len(chunk)
        return count

    assert read(stream(0.01), own=60) == 10_000
    with pytest.raises(exchange.TooSlow, match="only 3100 bytes came in 62 s"):
        read(stream(2), own=0)


def test_the_client_is_whoever_made_it_and_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's own certificates or headers stay in force: the client is wrapped, not replaced."""
    answers = [httpx2.Response(503), httpx2.Response(200)]
    set_client_factory(
        lambda: httpx2.Client(headers={"X-Mine": "1"}, transport=httpx2.MockTransport(lambda _: answers.pop(0)))
    )
    client = get_session()
    with patient(Patience(pause=0.0)):
        assert client.get("http://hub/file").status_code == 200  # asked twice
        with patient(PATIENCE):
            assert get_session() is client
        assert "send" in vars(client)
    assert get_session() is client
    assert client.headers["X-Mine"] == "1"
    assert "send" not in vars(client)


def test_a_send_that_another_has_wrapped_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200)))
    send, requests = client.send, list[str]()

    def theirs(request: httpx2.Request, **options: Any) -> httpx2.Response:
        requests.append(request.url.path)
        return send(request, **options)

    client.send = theirs  # type: ignore[method-assign]
    use_client(monkeypatch, lambda: client)
    with patient(PATIENCE):
        get_session().get("http://hub/file")
    assert requests == ["/file"]
    assert vars(client)["send"] is theirs


def test_what_the_library_asks_on_its_own_account_is_tried_once(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_client(monkeypatch, answering(in_turn(httpx2.ConnectError("no"))))
    with patient(PATIENCE), pytest.raises(httpx2.ConnectError):
        get_session().get("http://hub/api/agent-harnesses")
    assert pauses == []


LIBRARIES = ("huggingface_hub", "httpx2", "httpcore2", "datasets", "filelock")
SOURCES = sorted(
    path
    for path in Path(plr.__file__).parent.rglob("*.py")
    if "hub" in path.relative_to(Path(plr.__file__).parent).as_posix()
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_public_names_of_the_libraries_are_used(path: Path) -> None:
    """No module and no name with an underscore: `huggingface_hub.utils._http` may change with any release."""
    private = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            private += [alias.name for alias in node.names if "._" in alias.name]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
            private += [f"{node.module}.{alias.name}" for alias in node.names if "._" in f"{node.module}.{alias.name}"]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                private.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            private += [node.value] if re.match(rf"({'|'.join(LIBRARIES)})(\.\w+)*\._", node.value) else []
    assert private == []


def test_the_environment_says_how_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLR_HUB_TIMEOUT", "2.5")
    monkeypatch.setenv("PLR_HUB_TRIES", "9")
    assert Patience.of_environment() == Patience(silence=2.5, tries=9, window=7.5)
    for wrong in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("PLR_HUB_TIMEOUT", wrong)
        with pytest.raises(ConfigError, match=f"PLR_HUB_TIMEOUT is '{wrong}'"):
            Patience.of_environment()
