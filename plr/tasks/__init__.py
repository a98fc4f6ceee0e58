"""Tasks by name, and the checks on their data."""

from __future__ import annotations

from plr.tasks.base import Task, outcomes, tasks
from plr.tasks.classification import Classification
from plr.tasks.data import tsv
from plr.tasks.data.hub import HubData
from plr.tasks.data.leakage import check_leakage, check_text_leakage
from plr.tasks.file.find import find_task, is_task_file, read_task, task_of
from plr.tasks.library import arithmetic, glue, gsm8k, instruct, jglue, sql_create_context, tiny, xlsum
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
    "arithmetic",
    "check_leakage",
    "check_text_leakage",
    "find_task",
    "glue",
    "gsm8k",
    "instruct",
    "is_task_file",
    "jglue",
    "outcomes",
    "read_task",
    "sql_create_context",
    "task_of",
    "tasks",
    "tiny",
    "tsv",
    "xlsum",
]
