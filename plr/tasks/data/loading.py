"""Loading of one split: from a source to its examples, every step counted.

In this order: fields are checked, the splits that the source lacks are cut, duplicates dropped, long prompts
dropped, `limit` rows drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from plr.errors import DataError
from plr.tasks.data.hub import HubData, HubSource
from plr.tasks.data.local import LocalSource
from plr.tasks.data.sources import GeneratedSource, Row, Source
from plr.tasks.data.splits import choose, cut_validation, divide, halve, without_duplicates
from plr.tasks.types import SPLITS, Example, Fields, LoadReport, Split, TaskData

_HALF = re.compile("[\ud800-\udfff]")
"""A surrogate, which JSON can write alone: no UTF-8, and nothing for a tokenizer."""

__all__ = ["RowTask", "available_splits", "load_split", "row_problem", "source_rows"]


class RowTask(Protocol):
    """The part of a task (`plr.tasks.base.Task`) that loading its rows needs."""

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    hub: ClassVar[HubData | None]
    stems: ClassVar[Mapping[str, str]]
    stems_are_named: ClassVar[bool]
    json_holds_lines: ClassVar[bool]
    halves_validation: ClassVar[bool]

    def prompt(self, row: Fields) -> str: ...

    def target(self, row: Fields) -> str: ...

    def duplicate_key(self, row: Fields) -> str | None: ...

    def groups(self, row: Fields) -> frozenset[str]: ...

    def problem(self, row: Fields) -> str | None: ...

    def adopt(self, rows: list[Row]) -> list[Row]: ...

    def generated(self) -> GeneratedSource | None: ...


def load_split(task: RowTask, split: str, data: TaskData) -> Split:
    """Load the examples of `split` and what was left out.

    Raises:
        DataError: no such split, file or data set, or a malformed row; the message names file, line and field.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}", expected="one of " + ", ".join(SPLITS))
    if data.limit is not None and data.limit < 1:
        raise DataError(f"limit is {data.limit}", expected="1 or more, or none for all rows")
    source = _source(task, data)
    rows, cut = _rows_of(task, source, split, data)
    unique = without_duplicates(rows, lambda row: task.duplicate_key(row.values))
    examples = [_example(task, row) for row in unique]
    most = data.max_prompt_chars
    short = [example for example in examples if most is None or len(example.prompt) <= most]
    drawn = choose(short, data.limit, data.limit_seed, key=lambda example: example.id)
    if not drawn:
        if examples:
            raise DataError(
                f"nothing is left of the {split} split of {task.name}: {len(rows)} rows in {source.description}, of which "
                f"{len(examples) - len(short)} have a prompt of more than {most} characters",
                hint="raise max_prompt_chars",
            )
        raise DataError(
            f"no row falls to the {split} split of {task.name} in {source.description}: {cut or 'it has none'}",
            hint="give more rows (rows of one prompt or group stay together), or a file for each split",
        )
    report = LoadReport(
        task=task.name,
        split=split,
        source=source.description,
        rows=len(rows),
        duplicates=len(rows) - len(unique),
        too_long=len(examples) - len(short),
        not_drawn=len(short) - len(drawn),
        kept=len(drawn),
        cut=cut,
        files=dict(source.files) if isinstance(source, HubSource) else {},
    )
    return Split(tuple(drawn), report)


def available_splits(task: RowTask, data: TaskData) -> tuple[str, ...]:
    """List the splits that `load_split` can give, in the order train, validation, test."""
    names = set(_source(task, data).splits)
    names |= {"test"} if task.halves_validation and "validation" in names else set()
    names |= set(SPLITS) if "all" in names else {"validation"} if "train" in names else set()
    return tuple(split for split in SPLITS if split in names)


def _source(task: RowTask, data: TaskData) -> Source:
    if data.path is not None:
        named = task.stems_are_named
        return LocalSource(data.path, task.stems, named=named, json_holds_lines=task.json_holds_lines)
    if task.hub is not None:
        return HubSource(task.name, task.hub, data.revision)
    source = task.generated()
    if source is None:
        raise DataError(f"{task.name} has no data of its own", hint="give its rows with --data FOLDER")
    return source


def _rows_of(task: RowTask, source: Source, split: str, data: TaskData) -> tuple[list[Row], str | None]:
    """Select the rows that fall to `split`, and in words how it was cut where the source has no such split."""
    seed = data.split_seed

    def groups(row: Row) -> frozenset[str]:
        return task.groups(row.values)

    if "all" in source.splits:
        rows = _checked(task, source, "all", data)
        return divide(rows, groups, seed)[
            split
        ], f"one split of {len(rows)} rows divided 80/10/10 in groups, seed {seed}"
    if split != "test" and "validation" not in source.splits and "train" in source.splits:
        rows = _checked(task, source, "train", data)
        train, validation = cut_validation(rows, groups, seed)
        words = f"{len(validation)} of the {len(rows)} rows of train are taken as validation, seed {seed}"
        return (train if split == "train" else validation), words
    if task.halves_validation and "validation" in source.splits and split != "train" and "test" not in source.splits:
        rows = _checked(task, source, "validation", data)
        first, second = halve(rows, groups, seed)
        words = f"one half of the {len(rows)} rows of validation, seed {seed}"
        return (first if split == "validation" else second), words
    if split not in source.splits:
        raise DataError(
            f"{source.description} has no {split} split, only {', '.join(source.splits)}",
            expected=f"a file {split}.jsonl (or .json, .csv, .tsv)",
        )
    return _checked(task, source, split, data), None


def _example(task: RowTask, row: Row) -> Example:
    return Example(f"{row.split}-{row.position}", row.values, task.prompt(row.values), task.target(row.values))


def row_problem(task: RowTask, row: Row) -> tuple[str, str] | None:
    """Explain what is wrong with a row, and what would be right; None if it can be used."""
    for name in task.fields:
        value = row.values.get(name)
        if value is None:
            fields = ", ".join(map(str, row.values)) or "none"
            return (
                f"the field {name!r} is missing; given are {fields}",
                f"rows of {task.name} have {', '.join(task.fields)}",
            )
        if not isinstance(value, str):
            return f"the field {name!r} is {value!r}", f"text, not {type(value).__name__}"
        if not value.strip():
            return f"the field {name!r} is empty", "some text"
    problem = task.problem(row.values)
    if problem is None and (half := _HALF.search(task.prompt(row.values) + task.target(row.values))):
        problem = f"it holds half a character, {half[0]!r}, which is no text"
    return None if problem is None else (problem, f"rows in the form of {task.name}")


def source_rows(task: RowTask, data: TaskData) -> dict[str, list[Row]]:
    """Read every split of the source as it stands, not cut and not checked."""
    source = _source(task, data)
    return {split: _read(task, source, split, data) for split in source.splits}


def _read(task: RowTask, source: Source, split: str, data: TaskData) -> list[Row]:
    """Read a split with the fields by the names that the task has for them.

    Raises:
        DataError: a row without a column that a field is to be read from.
    """
    rows = source.read(split)
    return task.adopt([_renamed(row, data.columns) for row in rows] if data.columns else rows)


def _renamed(row: Row, columns: Sequence[tuple[str, str]]) -> Row:
    taken = {column for _, column in columns}
    values = {name: value for name, value in row.values.items() if name not in taken}
    for name, column in columns:
        if column not in row.values:
            raise DataError(
                f"{row.where}: there is no column {column!r} to read {name} from; given are {', '.join(map(str, row.values))}",
                expected="columns that every row has",
                hint="--columns FIELD=COLUMN,...",
            )
        values[name] = row.values[column]
    return row._replace(values=values)


def _checked(task: RowTask, source: Source, split: str, data: TaskData) -> list[Row]:
    rows = _read(task, source, split, data)
    for row in rows:
        if problem := row_problem(task, row):
            raise DataError(f"{row.where}: {problem[0]}", expected=problem[1])
    return rows
