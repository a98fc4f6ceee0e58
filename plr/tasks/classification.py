"""Tasks with a head: a text, or a pair of texts, to one of a few labels or to a number.

How such a task differs from one that writes its answer:

- `texts` says what the head judges, `label` what is right: the index of a label in `Classification.labels`, or a
  number. The prompt is the texts, one a line, and the target the label's name: they give a row its id, its group and its words
  for the guard against leakage, and no model reads them in this form.
- `metrics` are names in `plr.scoring.classification`, over all rows at once. Of these only `acc` has a value a row.
- `max_new_tokens` and `stop` have no meaning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from plr.scoring.score import Score
from plr.tasks.base import Task
from plr.tasks.types import Example, Fields, HeadSpec, Response, TaskData, Texts

__all__ = ["Classification"]


class Classification(Task):
    """A task for a model with a sequence classification head."""

    kind = "classification"
    text_fields: ClassVar[tuple[str, ...]]
    """The one or two fields that hold the texts."""

    @abstractmethod
    def labels(self, data: TaskData | None = None) -> tuple[str, ...]:
        """List the names of the labels in the order of the head's outputs; none for a number."""

    @abstractmethod
    def label(self, row: Fields, head: HeadSpec | None = None) -> int | float:
        """Return the right answer: an index into the labels of `head` (of the task, where they do not depend on data), or a number.

        Raises:
            DataError: a label that `head` has not.
        """

    @abstractmethod
    def target(self, row: Fields) -> str:
        """Return the name of the label, or the number."""

    def head(self, data: TaskData | None = None) -> HeadSpec:
        """Return the head that the task needs."""
        return HeadSpec(self.labels(data))

    def texts(self, row: Fields) -> Texts:
        """Return the texts the head judges."""
        first, *second = (str(row[name]) for name in self.text_fields)
        return first, second[0] if second else None

    def prompt(self, row: Fields) -> str:
        return "\n".join(text for text in self.texts(row) if text is not None)

    def question(self, row: Fields) -> str:
        return self.prompt(row)

    def boundary(self, text: str) -> str:
        return text.strip()

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        """Score a prediction that is given as the name of a label."""
        if "acc" not in self.metrics:
            return {}
        answer = self.boundary(response.text)
        return {"acc": Score.of(answer == example.target, answer, f"the label is {example.target}")}

    def score_all(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Score]]:
        return self.scores_all(examples, responses)
