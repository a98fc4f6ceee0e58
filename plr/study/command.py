"""A command as a study of one cell: its options laid over a recipe, a study file and `--set` texts.

So a command and a grid cannot disagree about a default. An option is a value already: it is never written out as text and read
again, and a `$` in it is a `$`. What is text is read once, where it stands: the file of `--config` and each `--set`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from plr.core.config import load_yaml
from plr.errors import UsageError
from plr.study.file import StudyConfig, checked_config, laid_over, substitute
from plr.study.presets import preset_for

__all__ = ["CommandConfig", "QuantizeKnobs", "RecipeOptions", "command_config", "no_task"]


class RecipeOptions(TypedDict, total=False):
    """Options of every command that makes a base: the task and the recipe around it."""

    task: str | None
    """Name of a task, or a task file."""
    data: str | Path | None
    """Rows of that task: a folder or a file."""
    columns: Mapping[str, str] | None
    """Fields that the rows have under other names: field -> column."""
    preset: str | None
    """Recipe below everything else: `paper`, `best` or `tiny`; the model decides if left out."""
    config: str | Path | None
    """YAML file with keys of a study file, over the preset."""
    overrides: Sequence[str]
    """`KEY=VALUE` texts over everything else, as `--set` takes them."""


class QuantizeKnobs(TypedDict, total=False):
    """Options of a quantization: keys of `quantize` in a study file. None leaves the recipe's value."""

    method: str | None
    calibration: str | Path | None
    samples: int | None
    seed: int | None
    group_size: int | None
    gate_text: str | Path | None


class CommandConfig(StudyConfig, frozen=True):
    """A study whose texts are values already: variables were replaced where text was read."""

    def substituted(self, text: str) -> str:
        return text


def command_config(
    model: str | Path,
    bits: int,
    recipe: RecipeOptions,
    *,
    knobs: QuantizeKnobs | None = None,
    adapter: str | None = None,
    seed: int | None = None,
    needs_task: bool = True,
    source: str | None = None,
) -> CommandConfig:
    """Lay options over the recipe, and the `--set` texts over both.

    Without `needs_task`, the `tasks` of a command that names none, for a model that has none by default, are not set.

    Raises:
        UsageError: no task, where one is needed.
        ConfigError: the file or a `--set` text does not fit a study, or names a variable that is not set.
        UnknownNameError: no such preset.
    """
    name, file, preset = os.fspath(model), recipe.get("config"), recipe.get("preset")
    task, values = recipe.get("task"), _values(knobs or {})
    text = values.get("calibration")
    if task is None and isinstance(text, str) and text.startswith(OF_TASK):
        task = text.removeprefix(OF_TASK)  # the task of the cell, on which the base is measured too
        del values["calibration"]
    value: dict[str, object] = {"preset": preset_for(name), **({} if file is None else _read(Path(file)))}
    value |= {"name": "command", "models": [name], "train_bits": [bits], "restore_bits": [bits]}
    if source is not None:
        value["source"] = source
    if preset is not None:
        value["preset"] = preset
    if adapter is not None:
        value["adapters"] = [{"method": adapter}]
    if seed is not None:
        value["seeds"] = [seed]
    tasks = _tasks(name, value.get("tasks"), task, recipe.get("data"), recipe.get("columns"))
    if tasks is not None:
        value["tasks"] = tasks
    elif needs_task:
        raise no_task(name)
    if values:
        value = laid_over(value, {"quantize": values})
    where = "options" if file is None else str(file)
    return checked_config(CommandConfig, value, where, tuple(recipe.get("overrides") or ()), substituted_at)


def _tasks(
    model: str, listed: object, task: str | None, data: str | Path | None, columns: Mapping[str, str] | None
) -> object:
    """Choose the one task of a command: the option's, or the first of the file, with the option's rows; None: there is none."""
    if task is None and isinstance(listed, list) and listed:
        first = cast("list[object]", listed)[0]
        entry = {"name": first} if isinstance(first, str) else first
    elif task is None and listed is not None:
        return cast("object", listed)
    elif task is None and not model.startswith("embedded:"):
        if data is not None:
            raise no_task(model)
        return None
    else:
        entry = {"name": "tiny_math" if task is None else task}
    if data is not None and isinstance(entry, Mapping):
        entry = {**cast("Mapping[str, object]", entry), "data": os.fspath(data)}
    if columns and isinstance(entry, Mapping):
        entry = {**cast("Mapping[str, object]", entry), "columns": dict(columns)}
    return [entry]


def no_task(model: str) -> UsageError:
    """Say that a command for `model` names no task."""
    return UsageError(
        f"no task was given for {model}",
        expected="a task whose training rows calibrate and train, e.g. --task gsm8k or --calibration task:gsm8k",
        hint="a base alone may be calibrated on a file: plr quantize --calibration FILE",
    )


def _values(knobs: QuantizeKnobs) -> dict[str, object]:
    """Select the knobs that have a value; a `Path` is a file, whatever it is called."""
    names = QuantizeKnobs.__annotations__
    values = {key: value for key, value in knobs.items() if key in names and value is not None}
    return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()}


def _read(file: Path) -> dict[str, object]:
    return {key: substituted_at((key,), value) for key, value in load_yaml(file).items()}


OF_TASK = "task:"
"""The prefix by which `calibration` names a task, and not a file."""

_SECTIONS = ("models", "tasks", "quantize")
_TEXTS = ("models", "tasks", "tests", "name", "data", "calibration", "gate_text")
"""Keys of a study file below which a text names a model, a task or a file."""


def substituted_at(place: tuple[str, ...], value: object) -> object:
    """Replace `$NAME` in the texts of a study file that name models, tasks and files; `place` is where `value` stands."""
    if place[0] not in _SECTIONS:
        return value
    if isinstance(value, str):
        key = next(part for part in reversed(place) if not part.isdecimal())
        return substitute(value) if key in _TEXTS else value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {key: substituted_at((*place, str(key)), item) for key, item in entries.items()}
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [substituted_at((*place, str(index)), item) for index, item in enumerate(items)]
    return value
