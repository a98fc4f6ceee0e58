"""A task of plr's own is one file in `plr/tasks/library`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import plr.tasks
from plr.tasks import library, tasks

FOLDER = Path(library.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
SOURCE = """
from plr.tasks.base import tasks
from plr.tasks.library.gsm8k import Gsm8k


class Planted(Gsm8k):
    name = "planted"


tasks.register("planted")(Planted())
"""


def test_a_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(SOURCE)
    monkeypatch.setattr(library, "__path__", [*library.__path__, str(tmp_path)])
    monkeypatch.setattr(tasks, "_items", dict(tasks._items))
    try:
        modules = library.discover()
        assert sorted(modules) == sorted([*MODULES, "planted"])
        assert modules["planted"].__file__ == str(tmp_path / "planted.py")
        assert tasks.get("planted").name == "planted"
    finally:
        sys.modules.pop("plr.tasks.library.planted", None)
        library.__dict__.pop("planted", None)


def test_no_module_is_named_elsewhere() -> None:
    source = Path(plr.tasks.__file__).read_text()
    assert [name for name in MODULES if f'"{name}"' in source or f"import {name}" in source] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_an_attribute(name: str) -> None:
    assert getattr(plr.tasks, name).__name__ == f"plr.tasks.library.{name}"


def test_what_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"module 'plr.tasks' has no attribute 'gsm9k'"):
        plr.tasks.gsm9k  # noqa: B018
