"""An evaluation cell, opened: its task, classification head, rows and few-shot examples, each read once.

All scoring code takes the `OpenCell` and reads neither the task registry nor the data again.
"""

from __future__ import annotations

from dataclasses import dataclass

from plr.core.specs import Evaluate, Restore
from plr.errors import UsageError
from plr.evaluation.fewshot import DELIMITER, Shots, shots_for
from plr.tasks import Example, HeadSpec, Task, task_of
from plr.tasks.data.rows import data_record, draw, guard_other, head_of, load_split

__all__ = ["OpenCell", "open_cell"]


@dataclass(frozen=True)
class OpenCell:
    """One cell, ready to be scored."""

    step: Evaluate
    task: Task
    head: HeadSpec | None
    """The classification head that answers; None for a written answer."""
    rows: tuple[Example, ...]
    shots: Shots
    split_rows: int
    """Rows of the whole split, before `limit`."""
    data: dict[str, object]
    """Source, revision and checksums of the rows, as `data_record` gives them."""

    @property
    def prompts(self) -> list[str]:
        """The prompts as the model reads them, few-shot examples included."""
        return [self.shots.context + row.prompt for row in self.rows]

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer early: the task's own; after examples, where it has none, the blank line before another."""
        return self.task.stop or ((DELIMITER,) if self.shots.examples else ())


def open_cell(step: Evaluate) -> OpenCell:
    """Open the cell of `step`: read its task, head, rows and few-shot examples.

    Raises:
        UsageError: the adapter was trained for another kind of answer, or too few rows for the examples asked for.
        LeakageError: the adapter was trained on another task, in whose rows some of these stand.
        DataError: see `plr.tasks.data.rows.load_split`.
    """
    head = _head_for(step)
    split = load_split(step.task, step.split)
    shots = shots_for(step, split.examples)
    rows = draw(split.examples, step.limit, step.limit_seed)
    if isinstance(step.target, Restore) and step.target.adapter.task is not None:
        guard_other(step.target.adapter.task, step.task, rows)
    return OpenCell(
        step=step,
        task=task_of(step.task),
        head=head,
        rows=tuple(rows),
        shots=shots,
        split_rows=len(split.examples),
        data=data_record(step.task, step.split),
    )


def _head_for(step: Evaluate) -> HeadSpec | None:
    """Find the head that the target of `step` carries; None for a language model.

    Raises:
        UsageError: the adapter was trained for another kind of answer than the task asks for.
    """
    asked = head_of(step.task)
    if not isinstance(step.target, Restore):
        return asked
    trained_on = step.target.adapter.task
    if trained_on is None:
        return asked
    trained = head_of(trained_on)
    same = trained_on.name == step.task.name
    if _form(asked) != _form(trained) or (same and asked != trained):
        raise UsageError(
            f"the adapter was trained on {trained_on.name} ({_words(trained)}), and {step.task.name} asks for {_words(asked)}",
            expected="a task with the same head" if trained else "a task whose answer is written",
            hint=f"evaluate it on {trained_on.name}",
        )
    return trained


def _form(head: HeadSpec | None) -> tuple[int, bool] | None:
    return (head.num_labels, head.regression) if head else None


def _words(head: HeadSpec | None) -> str:
    if head is None:
        return "a written answer"
    return "a number" if head.regression else f"one of {head.num_labels} labels"
