"""The registry: the nearest name, one owner a name, entry points."""

from __future__ import annotations

import pytest

from plr.errors import PlrError, UnknownNameError
from plr.registry import Registry


def test_registry_suggests_the_nearest_name() -> None:
    registry: Registry[int] = Registry("thing", "plr.nothing")
    registry.register("gsm8k")(1)
    with pytest.raises(UnknownNameError, match=r"unknown thing 'gms8k'[\s\S]*did you mean gsm8k"):
        registry.get("gms8k")


def test_registry_refuses_a_second_owner_of_a_name() -> None:
    registry: Registry[object] = Registry("thing", "plr.nothing")
    registry.register("a")(1)
    with pytest.raises(PlrError, match="two things are called 'a'"):
        registry.register("a")(2)


def test_registry_loads_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "theirs"

        def load(self) -> int:
            return 7

    monkeypatch.setattr("plr.registry.entry_points", lambda group: [Point()] if group == "plr.things" else [])
    assert Registry[int]("thing", "plr.things").get("theirs") == 7
