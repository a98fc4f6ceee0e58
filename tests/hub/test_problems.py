"""What is said when the hub does not give what was asked for."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import httpcore2
import httpx2
import pytest
from fake_hub import SHA, FakeHub, Fault, Repo
from hub_client import point, use_client
from huggingface_hub.utils._http import default_client_factory

from plr.errors import UsageError
from plr.hub import Fetched, commit_sha, fetch
from plr.hub.problems import explained

FILES = {"README.md": b"# data\n", "train.bin": bytes(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({"org/data": Repo(FILES)}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def get() -> Fetched:
    return fetch("dataset", "org/data", SHA, list, offline=False, advice="ask Ann")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", status=500), r"it answers 500 Internal Server Error; 3 tries in \d+ s"),
        (Fault("status", status=503, headers={"Retry-After": "120"}), "503 .* and asks to wait for 120 s"),
        (Fault("status", status=429, headers={"RateLimit": '"api";r=0;t=77'}), "429 .* and asks to wait for 77 s"),
        (Fault("status", status=403), r"the hub refuses 'org/data' \(status 403\)"),
        (
            Fault("status", "/", status=400, headers={"X-Error-Message": "no such thing"}),
            r"'org/data' \(status 400\): no such thing",
        ),
        (
            Fault(
                "status", "/", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}
            ),
            "the hub refuses the token",
        ),
    ],
)
def test_answers_that_are_no_file(hub: FakeHub, fault: Fault, message: str) -> None:
    hub.faults.append(fault)
    with pytest.raises(UsageError, match=message):
        get()


@pytest.mark.parametrize(("gate", "message"), [(401, "and you are not logged in"), (403, "asks for its licence")])
def test_a_licence_gate_names_the_page(hub: FakeHub, gate: int, message: str) -> None:
    hub.repos["org/data"].gate = gate
    with pytest.raises(UsageError, match=message) as e:
        get()
    assert f"accept it at {hub.endpoint}/datasets/org/data" in str(e.value.hint)
    assert ("hf auth login" in str(e.value.hint)) == (gate == 401)


def test_a_page_of_somebody_else_is_not_taken_for_the_hub(hub: FakeHub) -> None:
    hub.faults.append(Fault("page", "/tree/"))
    with pytest.raises(UsageError, match="what answers in the place of the hub for 'org/data' is not the hub"):
        get()
    hub.faults[:] = [Fault("page", "/resolve/")]
    with pytest.raises(UsageError, match="what answers in the place of the hub for 'org/data' is not the hub"):
        get()


@pytest.mark.parametrize("page", [b"{}", b"[]", b"null", b'"x"', b'{"error": "x"}', b'[{"type": "file", "path": "a"}]'])
def test_json_that_is_not_of_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    monkeypatch.setattr(fake_hub, "PAGE", page)
    hub.faults.append(Fault("page", "/api/"))
    with pytest.raises(UsageError, match="what answers in the place of the hub for 'org/data' is not the hub"):
        commit_sha("dataset", "org/data", advice="ask Ann")
    with pytest.raises(UsageError, match=r"'org/data' is not the hub|org/data on the hub has no files"):
        get()


def test_an_error_of_whoever_asks_is_not_laid_to_the_hub(hub: FakeHub) -> None:
    with pytest.raises(KeyError, match="ours"):
        fetch("dataset", "org/data", SHA, lambda _: {}["ours"], offline=False, advice="")
    with pytest.raises(KeyError, match="ours"), explained("dataset", "org/data", advice=""):
        raise KeyError("ours")


@pytest.mark.parametrize(
    ("variable", "value", "message", "hint"),
    [
        (
            "HTTP_PROXY",
            "foo://ann:secret@x:1",
            "the proxy that HTTP_PROXY names cannot be used: Unknown scheme",
            "SOCKS",
        ),
        ("HTTP_PROXY", "http://ann:secret@127.0.0.1:9", "cannot be reached .* refused", "and the proxy in HTTP_PROXY,"),
        ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT is 'huggingface.co'", None),
        ("HF_TOKEN", "hf_sécret", "the token of the hub holds a character that is in none", "set HF_TOKEN"),
    ],
)
def test_what_the_environment_says_wrong_is_named(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str, hint: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    if variable == "HF_ENDPOINT":
        point(monkeypatch, value, tmp_path)
    if variable == "HTTP_PROXY":
        use_client(monkeypatch, default_client_factory)
    with pytest.raises(UsageError, match=message) as e:
        commit_sha("dataset", "org/data", advice="ask Ann")
    assert "secret" not in str(e.value)
    assert hint is None or hint in str(e.value.hint)


def test_a_certificate_of_the_network_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        """As httpx2 and httpcore2 pass on what the ssl module raises."""
        cause = httpcore2.ConnectError("certificate verify failed: self-signed certificate")
        cause.__cause__ = ssl.SSLCertVerificationError(str(cause))
        raise httpx2.ConnectError(str(cause)) from cause

    point(monkeypatch, "https://hub", tmp_path)
    use_client(monkeypatch, lambda: httpx2.Client(transport=httpx2.MockTransport(refuse)))
    with pytest.raises(UsageError, match="self-signed certificate; 2 tries") as e:
        commit_sha("dataset", "org/data", advice="ask Ann")
    assert "name the file with its own in SSL_CERT_FILE" in str(e.value.hint)
