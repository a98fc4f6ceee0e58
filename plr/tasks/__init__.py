"""Tasks by name, and the checks on their data."""

from __future__ import annotations

from plr.tasks import gsm8k, sql_create_context, tiny
from plr.tasks.base import Task, tasks
from plr.tasks.hub import HubData
from plr.tasks.leakage import check_leakage, check_text_leakage
from plr.tasks.types import Example, LoadReport, Response, Split, TaskData

__all__ = [
    "Example",
    "HubData",
    "LoadReport",
    "Response",
    "Split",
    "Task",
    "TaskData",
    "check_leakage",
    "check_text_leakage",
    "gsm8k",
    "sql_create_context",
    "tasks",
    "tiny",
]
