"""A plan without a network: what only the hub can answer is left open, and what is wrong here is an error all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import SHA, FakeHub, Fault, Repo
from hub_client import environment, point

from plr.errors import DataError, HubDataUnreachable, HubError, HubNotFound, HubRefused, HubUnreachable, UsageError
from plr.study.resolve import Resolver

MISTYPED = ("./my-lama", "my-lama", "~/my-lama", "hub-models/my/lama", "hub.gguf")
"""No folder, no file and no form of a hub id, though the messages about them name the hub."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with FakeHub({"org/tiny": Repo({"config.json": b"{}"}, "models")}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("text", MISTYPED)
def test_a_mistyped_path_is_never_planned_as_a_model_of_the_hub(
    hub: FakeHub, text: str, strict: bool, offline: bool
) -> None:
    resolver = Resolver(strict=strict, offline=offline)
    with pytest.raises(UsageError, match=r"neither a folder nor a \.gguf file here") as e:
        resolver.model(text)
    assert not isinstance(e.value, HubError)
    assert resolver.unresolved == []
    assert hub.asked == []


def test_what_only_the_network_can_answer_is_left_open_in_a_plan_alone(hub: FakeHub) -> None:
    resolver = Resolver(strict=False, offline=True)
    ref = resolver.model("org/name@v1")
    assert (ref.name, ref.revision, resolver.unresolved) == ("org/name", "unresolved", ["model org/name@v1"])
    with pytest.raises(HubUnreachable, match="org/name@v1 is not in the local hub cache and plr is offline"):
        Resolver(offline=True).model("org/name@v1")
    assert hub.asked == []


@pytest.mark.parametrize("fault", [Fault("status", "/api/"), Fault("silent", "/api/"), Fault("page", "/api/")])
def test_a_hub_that_gives_no_answer_is_the_same_as_none(hub: FakeHub, fault: Fault) -> None:
    hub.faults.append(fault)
    resolver = Resolver(strict=False)
    assert resolver.model("org/tiny").revision == "unresolved"
    with pytest.raises(HubUnreachable):
        Resolver().model("org/tiny")
    hub.faults.clear()
    assert Resolver(strict=False).model("org/tiny").revision == SHA


@pytest.mark.parametrize(
    ("text", "fault", "kind"),
    [
        ("org/tny", None, HubNotFound),
        ("org/tiny@v9", None, HubNotFound),
        ("org/tiny", Fault("status", "/api/", status=403, headers={"X-Error-Code": "GatedRepo"}), HubRefused),
        ("org/tiny", Fault("status", "/api/", status=401, headers={"X-Error-Message": "no"}), HubRefused),
    ],
)
def test_what_the_hub_answers_is_an_error_of_the_plan_too(
    hub: FakeHub, text: str, fault: Fault | None, kind: type[HubError]
) -> None:
    hub.faults += [fault] if fault else []
    for strict in (True, False):
        resolver = Resolver(strict=strict)
        with pytest.raises(kind):
            resolver.model(text)
        assert resolver.unresolved == []


def test_a_data_set_that_cannot_be_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    resolver = Resolver(strict=False, offline=True)
    assert resolver.task("gsm8k").revision == "unresolved"
    assert resolver.unresolved == ["data of task gsm8k"]
    with pytest.raises(
        HubDataUnreachable, match="plr is offline, and openai/gsm8k from the hub is not in the cache"
    ) as e:
        Resolver(offline=True).task("gsm8k")
    assert isinstance(e.value, DataError)
    assert e.value.exit_code == 2
    with pytest.raises(HubNotFound, match="the hub knows no dataset 'openai/gsm8k'"):
        Resolver(strict=False).task("gsm8k")


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_wrong_with_a_task_here_is_an_error_of_the_plan_too(tmp_path: Path, strict: bool) -> None:
    """Though the messages hold the word: of a folder, or of a task's name."""
    with pytest.raises(DataError, match=r"there is no data at .*hub-data"):
        Resolver(strict=strict).task("gsm8k", data=str(tmp_path / "hub-data"))
    with pytest.raises(UsageError, match="unknown task 'github'"):
        Resolver(strict=strict).task("github")


@pytest.mark.parametrize(
    ("model", "code", "key", "value"),
    [
        (
            "./my-lama",
            2,
            "error",
            "the model './my-lama' is neither a folder nor a .gguf file here, nor the form of a hub id",
        ),
        (
            "my-lama",
            2,
            "error",
            "the model 'my-lama' is neither a folder nor a .gguf file here, nor the form of a hub id",
        ),
        ("org/name", 0, "unresolved", ["model org/name"]),
    ],
)
def test_grid_dry_run_offline(tmp_path: Path, model: str, code: int, key: str, value: object) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"name: s\nmodels: ['{model}']\ntasks: [tiny_math]\n")
    done = subprocess.run(
        [sys.executable, "-m", "plr", "grid", str(study), "--dry-run", "--offline", "--json"],
        env=environment("http://127.0.0.1:9", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert json.loads(done.stdout)[key] == value
