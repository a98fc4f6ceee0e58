"""Tasks by name, and the checks on their data. The modules of `plr.tasks.library` are attributes: `plr.tasks.gsm8k`."""

from __future__ import annotations

from types import ModuleType

from plr.tasks.base import Task, outcomes, tasks
from plr.tasks.classification import Classification
from plr.tasks.data import tsv
from plr.tasks.data.hub import HubData
from plr.tasks.data.leakage import check_leakage, check_text_leakage
from plr.tasks.file.find import find_task, is_task_file, read_task, task_of
from plr.tasks.library import discover
from plr.tasks.types import Example, HeadSpec, Kind, LoadReport, Response, Split, TaskData, Texts

__all__ = [
    "Classification",
    "Example",
    "HeadSpec",
    "HubData",
    "Kind",
    "LoadReport",
    "Response",
    "Split",
    "Task",
    "TaskData",
    "Texts",
    "check_leakage",
    "check_text_leakage",
    "find_task",
    "is_task_file",
    "outcomes",
    "read_task",
    "task_of",
    "tasks",
    "tsv",
]

_library = discover()


def __getattr__(name: str) -> ModuleType:
    if name in _library:
        return _library[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
