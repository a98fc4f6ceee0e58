"""A specimen of a task: how it scores, shown live on one of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from plr.scoring.score import Score
from plr.tasks.base import Task
from plr.tasks.types import Example, Response

__all__ = ["Specimen", "specimens"]


class Specimen(NamedTuple):
    """A response to a row, who would have given it, and what each metric makes of it."""

    what: str
    response: Response
    scores: dict[str, Score]


def specimens(task: Task, row: Example, others: Sequence[Example]) -> list[Specimen]:
    """List the gold answer, the gold answer without a stop (of a task that writes), and a wrong one: another row's target."""
    responses = [("the gold answer", Response(row.target, ended=True))]
    if task.kind == "generation":
        responses.append(("the gold answer, and on", Response(f"{row.target}\n\n{row.prompt}", ended=False)))
    wrong = next((other.target for other in others if other.target.strip() != row.target.strip()), None)
    if wrong is not None:
        responses.append(("the answer of another row", Response(wrong, ended=True)))
    return [Specimen(what, response, task.score(row, response)) for what, response in responses]
