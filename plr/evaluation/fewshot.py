"""Few-shot prompts: solved rows of the train split before every question, the same ones for all.

An example is its prompt and its target, as training would see them, with a blank line behind: lm-eval's form. Every question
begins with the same text, so that a model reads it once (`plr.lm.engine`). Without a seed the first rows of the train split
are taken, as lm-eval's sampler `first_n` does; with one they are drawn. A row whose prompt stands in the split that is scored is
never taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plr.core.specs import Evaluate, TaskSpec
from plr.errors import UsageError
from plr.tasks import Example, task_of
from plr.tasks.data.rows import draw, has_split, load_split
from plr.tasks.data.splits import normalized

__all__ = ["DELIMITER", "Shots", "check_shots", "shots_for"]

DELIMITER = "\n\n"


@dataclass(frozen=True)
class Shots:
    """The examples of a run, in the order in which they stand before a question."""

    examples: tuple[Example, ...] = ()

    @property
    def context(self) -> str:
        """Text before every question; empty for none."""
        return "".join(example.prompt + example.target + DELIMITER for example in self.examples)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]


def check_shots(task: TaskSpec, num_fewshot: int) -> None:
    """Refuse few-shot examples for a task without a prompt to hold them.

    Raises:
        UsageError: the task is answered by a classification head.
    """
    if num_fewshot and task_of(task).kind == "classification":
        raise UsageError(
            f"num_fewshot is {num_fewshot}, and {task.name} is answered by a classification head",
            expected="0: a head reads the text that it judges and nothing else",
            hint="leave num_fewshot out",
        )


def shots_for(step: Evaluate, scored: Sequence[Example]) -> Shots:
    """Choose the examples of `step`; none of the rows of the scored split (`scored`) is among them.

    Raises:
        UsageError: the data has no train split, or fewer rows there than were asked for.
        DataError: see `plr.tasks.data.rows.load_split`.
    """
    if not step.num_fewshot:
        return Shots()
    check_shots(step.task, step.num_fewshot)
    if not has_split(step.task, "train"):
        raise UsageError(
            f"num_fewshot is {step.num_fewshot}, and the data of {step.task.name} has no train split",
            expected="a train split to take the examples from",
            hint="leave num_fewshot out, or give data with a train split",
        )
    questions = {normalized(row.prompt) for row in scored}
    rows = [row for row in load_split(step.task, "train").examples if normalized(row.prompt) not in questions]
    if len(rows) < step.num_fewshot:
        raise UsageError(
            f"num_fewshot is {step.num_fewshot}, and the train split of {step.task.name} has {len(rows)} rows to take",
            expected=f"at most {len(rows)}",
        )
    if step.fewshot_seed is None:
        return Shots(tuple(rows[: step.num_fewshot]))
    return Shots(tuple(draw(rows, step.num_fewshot, step.fewshot_seed)))
