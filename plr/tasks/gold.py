"""The gold answers, taken as predictions: each must be right, or no score on its row means anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from plr.errors import DataError
from plr.tasks.base import Task
from plr.tasks.types import Example, Response

__all__ = ["Gold", "judge_gold", "require_gold"]

AT_ONCE = 1000
"""Gold answers that are scored in one call."""


class Gold(NamedTuple):
    """Gold answers by the primary metric of their task; a row is named by its id and why.

    `cut` of the `wrong` ones go on behind the place where an answer ends.
    """

    total: int
    wrong: list[str]
    unscored: list[str]
    cut: int


def judge_gold(
    task: Task, rows: Sequence[Example], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Gold:
    """Score the target of each of `rows` as an answer that ended; `on_progress` is told how many of how many are scored."""
    total, wrong, unscored, cut = 0, list[str](), list[str](), 0
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        answers = [Response(row.target, ended=True) for row in part]
        for row, scores in zip(part, task.score_all(part, answers), strict=True):
            if (score := scores.get(task.primary)) is None:
                continue
            total += 1
            described = f"{row.id} ({' '.join(score.explanation.split())[:100]})"
            if score.value is None:
                unscored.append(described)
            elif score.value < 1 - 1e-9:
                wrong.append(described)
                cut += task.first_answer(row, row.target).strip() != row.target.strip()
        on_progress(start + len(part), len(rows))
    return Gold(total, wrong, unscored, cut)


def require_gold(task: Task, rows: Sequence[Example]) -> None:
    """Refuse `rows` of which a gold answer is wrong by itself.

    Raises:
        DataError: by the first such rows, and why.
    """
    gold = judge_gold(task, rows)
    for named, what in (
        (gold.wrong, "are not right by"),
        (gold.unscored if len(gold.unscored) == gold.total else [], "cannot be scored by"),
    ):
        if not named:
            continue
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise DataError(
            f"{len(named)} of {gold.total} gold answers of {task.name} {what} {task.primary} when they are the prediction: "
            f"{', '.join(named[:3])}{more}",
            expected="gold answers that the metric calls right: nobody can answer these rows",
            hint="plr tasks check TASK --data DATA lists them; mend the rows, or write a task file with another metric",
        )
