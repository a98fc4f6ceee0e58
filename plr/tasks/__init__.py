"""Tasks by name, and the checks on their data."""

from __future__ import annotations

from plr.tasks import arithmetic, glue, gsm8k, sql_create_context, tiny, tsv
from plr.tasks.base import Task, tasks
from plr.tasks.classification import Classification
from plr.tasks.hub import HubData
from plr.tasks.leakage import check_leakage, check_text_leakage
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
    "glue",
    "gsm8k",
    "sql_create_context",
    "tasks",
    "tiny",
    "tsv",
]
