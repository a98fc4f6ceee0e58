"""Only a launcher makes several processes of a training; what else stands in the environment is nobody's."""

from __future__ import annotations

import logging
import os

import pytest

from plr.core import launcher
from plr.errors import UsageError

WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launcher.LAUNCHED, *launcher.STRAY):
        monkeypatch.delenv(name, raising=False)


def put(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "follows", "world"),
    [
        ({}, False, 1),
        ({"RANK": "1"}, False, 1),
        ({"RANK": "x"}, False, 1),
        ({"WORLD_SIZE": "4"}, False, 1),
        ({"WORLD_SIZE": "many"}, False, 1),
        ({"WORLD_SIZE": "0"}, False, 1),
        ({"LOCAL_RANK": "0"}, False, 1),
        ({"RANK": "3", "WORLD_SIZE": "4"}, False, 1),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, False, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, False, 1),
        (WHOLE, False, 2),
        (WHOLE | {"RANK": "1", "LOCAL_RANK": "1"}, True, 2),
    ],
)
def test_only_a_launcher_makes_followers(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], follows: bool, world: int
) -> None:
    put(monkeypatch, variables)
    assert (launcher.is_follower(), launcher.world_size()) == (follows, world)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is ''"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE 0"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    put(monkeypatch, WHOLE | change)
    with pytest.raises(UsageError, match=message):
        launcher.world_size()


def test_strays_are_hidden_said_and_put_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    strays = {"RANK": "1", "WORLD_SIZE": "4", "PMI_SIZE": "4"}
    put(monkeypatch, strays)
    with caplog.at_level(logging.WARNING), launcher.strays_ignored():
        assert not {*strays} & {*os.environ}
    assert {name: os.environ[name] for name in strays} == strays
    assert "RANK=1, WORLD_SIZE=4, PMI_SIZE=4 in the environment, without LOCAL_RANK, MASTER_ADDR" in caplog.text


def test_a_launch_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    put(monkeypatch, WHOLE)
    with launcher.strays_ignored():
        assert os.environ["WORLD_SIZE"] == "2"
    assert caplog.text == ""
