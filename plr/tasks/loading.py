"""From a source to the examples of one split, every step counted.

In this order: fields are checked, the splits that the source lacks are cut, duplicates dropped, long prompts
dropped, ``limit`` rows drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plr.errors import DataError
from plr.tasks.hub import HubSource
from plr.tasks.local import LocalSource
from plr.tasks.sources import Row, Source
from plr.tasks.splits import choose, cut_validation, divide, without_duplicates
from plr.tasks.types import SPLITS, Example, LoadReport, Split, TaskData

if TYPE_CHECKING:
    from plr.tasks.base import Task

__all__ = ["available_splits", "load_split"]


def load_split(task: Task, split: str, data: TaskData) -> Split:
    """The examples of ``split`` and what was left out.

    Raises:
        DataError: no such split, file or data set, or a malformed row; the message names file, line and field.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}", expected="one of " + ", ".join(SPLITS))
    if data.limit is not None and data.limit < 1:
        raise DataError(f"limit is {data.limit}", expected="1 or more, or none for all rows")
    source = _source(task, data)
    rows, cut = _rows_of(task, source, split, data.split_seed)
    unique = without_duplicates(rows, lambda row: task.duplicate_key(row.values))
    examples = [_example(task, row) for row in unique]
    most = data.max_prompt_chars
    short = [example for example in examples if most is None or len(example.prompt) <= most]
    kept = choose(short, data.limit, data.limit_seed, key=lambda example: example.id)
    if not kept:
        raise DataError(
            f"nothing is left of the {split} split of {task.name}: {len(rows)} rows in {source.description}, of which "
            f"{len(examples) - len(short)} have a prompt of more than {most} characters",
            hint="raise max_prompt_chars" if examples else "give more rows",
        )
    report = LoadReport(
        task=task.name,
        split=split,
        source=source.description,
        rows=len(rows),
        duplicates=len(rows) - len(unique),
        too_long=len(examples) - len(short),
        not_drawn=len(short) - len(kept),
        kept=len(kept),
        cut=cut,
    )
    return Split(tuple(kept), report)


def available_splits(task: Task, data: TaskData) -> tuple[str, ...]:
    """The splits that :func:`load_split` can give, in the order train, validation, test."""
    given = set(_source(task, data).splits)
    given |= set(SPLITS) if "all" in given else {"validation"} if "train" in given else set()
    return tuple(split for split in SPLITS if split in given)


def _source(task: Task, data: TaskData) -> Source:
    if data.path is not None:
        return LocalSource(data.path, task.stems)
    if task.hub is not None:
        return HubSource(task.name, task.hub, data.revision)
    made = task.generated()
    if made is None:
        raise DataError(f"{task.name} has no data of its own", hint="give its rows with --data FOLDER")
    return made


def _rows_of(task: Task, source: Source, split: str, seed: int) -> tuple[list[Row], str | None]:
    """The rows that fall to ``split``, and in words how it was cut where the source has no such split."""

    def groups(row: Row) -> frozenset[str]:
        return task.groups(row.values)

    if "all" in source.splits:
        rows = _checked(task, source, "all")
        return divide(rows, groups, seed)[
            split
        ], f"one split of {len(rows)} rows divided 80/10/10 in groups, seed {seed}"
    if split != "test" and "validation" not in source.splits and "train" in source.splits:
        rows = _checked(task, source, "train")
        train, validation = cut_validation(rows, groups, seed)
        words = f"{len(validation)} of the {len(rows)} rows of train are taken as validation, seed {seed}"
        return (train if split == "train" else validation), words
    if split not in source.splits:
        raise DataError(
            f"{source.description} has no {split} split, only {', '.join(source.splits)}",
            expected=f"a file {split}.jsonl (or .json, .csv, .tsv)",
        )
    return _checked(task, source, split), None


def _example(task: Task, row: Row) -> Example:
    return Example(f"{row.split}-{row.position}", row.values, task.prompt(row.values), task.target(row.values))


def _checked(task: Task, source: Source, split: str) -> list[Row]:
    rows = task.adopt(source.read(split))
    for row in rows:
        for name in task.fields:
            value = row.values.get(name)
            if value is None:
                given = ", ".join(map(str, row.values)) or "none"
                raise DataError(
                    f"{row.where}: the field {name!r} is missing; given are {given}",
                    expected=f"rows of {task.name} have {', '.join(task.fields)}",
                )
            if not isinstance(value, str):
                raise DataError(
                    f"{row.where}: the field {name!r} is {value!r}", expected=f"text, not {type(value).__name__}"
                )
            if not value.strip():
                raise DataError(f"{row.where}: the field {name!r} is empty", expected="some text")
        if problem := task.problem(row.values):
            raise DataError(f"{row.where}: {problem}", expected=f"rows in the form of {task.name}")
    return rows
