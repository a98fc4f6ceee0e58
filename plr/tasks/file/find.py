"""Find a task by name, in a task file, or in the definition that a step carries."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from plr.core.config import load_yaml, parse
from plr.core.fingerprint import canonical_json
from plr.core.specs import TaskSpec
from plr.errors import ConfigError
from plr.tasks.base import Task, tasks
from plr.tasks.file.from_file import FileClassification, FileGeneration, FileScored
from plr.tasks.file.schema import TaskFile

__all__ = ["find_task", "is_task_file", "read_task", "task_of"]

FORMAT = 1
"""Raised when the same file comes to mean something else, a default among it."""


def is_task_file(name: str) -> bool:
    """Tell whether `name` names a file and not a registered task."""
    return name.lower().endswith((".yaml", ".yml"))


def find_task(name: str) -> Task:
    """Find the registered task `name`, or the task in the file `name`, read anew.

    Raises:
        UnknownNameError: no such task.
        ConfigError: see `read_task`; or a folder, or a file of rows, where a task is asked for.
    """
    path = Path(os.path.expanduser(name))
    if is_task_file(name) and not path.is_dir():
        return read_task(path)
    if name not in tasks.names() and path.exists():
        inside = sorted(str(file) for file in path.glob("*.y*ml")) if path.is_dir() else []
        raise ConfigError(
            f"{name} is a {'folder' if path.is_dir() else 'file of another kind'}, and no task",
            expected="the name of a task (plr tasks lists them), or a task file, which ends in .yaml",
            hint=f"name the file: {', '.join(inside)}" if inside else "rows are named with --data, beside the task",
        )
    return tasks.get(name)


def read_task(path: Path) -> Task:
    """Read the task in a YAML file; its name is that of the file if it gives none.

    Raises:
        ConfigError: no such file, no valid YAML, keys that do not fit, or the name of a task that plr has already.
    """
    file = parse(TaskFile, {"name": path.stem, **load_yaml(path)}, str(path))
    if file.name in tasks.names():
        raise ConfigError(
            f"{path}: there is already a task called {file.name}",
            expected="a name of its own",
            hint="write name: NAME into the file",
        )
    task = _task_from(_definition(file))
    if file.data is not None:
        task.data = str((path.parent / os.path.expanduser(file.data)).absolute())  # type: ignore[misc]
    return task


def task_of(spec: TaskSpec) -> Task:
    """Return the task of a resolved spec, from the registry or from the definition that it carries."""
    return tasks.get(spec.name) if spec.definition is None else _kept(spec.definition)


@lru_cache(maxsize=64)
def _kept(definition: str) -> Task:
    return _task_from(definition)


def _task_from(definition: str) -> Task:
    value = json.loads(definition)
    format_, version = value.pop("format"), value.pop("scorer_version", None)
    file = parse(TaskFile, value, f"task {value.get('name')}") if format_ == FORMAT else None
    if file is None or version != _scorer_version(file):
        raise ConfigError("the definition of this task was written by another version of plr", hint="use that version")
    if file.scorer is not None:
        return FileScored(file, definition)
    return (FileGeneration if file.kind == "generation" else FileClassification)(file, definition)


def _definition(file: TaskFile) -> str:
    """Return everything that bears on prompts, targets, splits and scores; where the rows lie does not."""
    values = file.model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    version = _scorer_version(file)
    scorer = {} if version is None else {"scorer_version": version}
    return canonical_json({"format": FORMAT, "name": file.name, **values, **scorer})


def _scorer_version(file: TaskFile) -> int | None:
    return None if file.scorer is None else tasks.get(file.scorer).version
