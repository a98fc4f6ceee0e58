"""The gold check of the rows that steps are going to use, once a process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from plr.core.specs import Evaluate, Step, TaskSpec, Train
from plr.errors import PlrError
from plr.tasks import Classification, task_of
from plr.tasks.data.rows import draw, load_split
from plr.tasks.gold import require_gold

__all__ = ["check_gold"]

TRAINING_ROWS = 500
"""Rows of a training whose gold is checked: as many as the seed draws first."""


def check_gold(steps: Iterable[Step]) -> None:
    """Check the gold of everything that `steps` score, and of the first rows that they train on.

    Data that cannot be read is left to the step that reads it.

    Raises:
        DataError: rows whose gold answer is wrong by itself.
    """
    for step in steps:
        if isinstance(step, Train):
            limit = min(step.train.train_limit or TRAINING_ROWS, TRAINING_ROWS)
            _check(step.task, "train", limit, step.train.seed)
        elif isinstance(step, Evaluate) and step.generate:
            _check(step.task, step.split, step.limit, step.limit_seed)


@lru_cache(maxsize=256)
def _check(spec: TaskSpec, split: str, limit: int | None, seed: int) -> None:
    task = task_of(spec)
    if isinstance(task, Classification):
        return  # a label is right by itself
    try:
        rows = draw(load_split(spec, split).examples, limit, seed)
    except PlrError:
        return
    require_gold(task, rows)
