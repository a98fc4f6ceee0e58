"""A task: a data set, a prompt and a scorer.

To add one (`plr/tasks/library/gsm8k.py` is the pattern): subclass `Task`, name the fields of a row, write
`prompt`, `target`, `boundary` and `scores`, and put an instance into the registry with
`tasks.register(name)(instance)`. A third party does the same in a package of its own and names that instance
under the entry point group `plr.tasks`::

    [project.entry-points."plr.tasks"]
    my_task = "my_package.my_module:MY_TASK"

Rows come from `TaskData.path` if it is given, else from `Task.hub`, else from `Task.generated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from plr.registry import Registry
from plr.scoring.metric import Metric, find_metric, metric_named
from plr.scoring.score import Score
from plr.tasks.data.hub import HubData
from plr.tasks.data.loading import available_splits, load_split
from plr.tasks.data.local import STEMS
from plr.tasks.data.sources import GeneratedSource, Row
from plr.tasks.data.splits import normalized
from plr.tasks.types import Example, Fields, Kind, Response, Split, TaskData

__all__ = ["Task", "outcomes", "tasks"]


class Task(ABC):
    """A data set with its prompt and its scorer. It holds no state: one instance serves every model."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever prompts, splits or scores change: it is part of the identity of every result."""
    fields: ClassVar[tuple[str, ...]]
    """The fields every row must have, each as text that is not empty."""
    metrics: ClassVar[tuple[str, ...]]
    """The keys of `score`, in the manner of lm-eval: `measure,filter`."""
    declared: ClassVar[tuple[Metric, ...]] = ()
    """Unit and direction of what the task measures beyond `plr.scoring.metric.KNOWN`, by name or by measure. What stands in neither
    is shown as a plain number of which more is better, with a note that says so."""
    primary: ClassVar[str]
    """The metric named beforehand for the study of transfer: the first answer, however the model goes on."""
    strict: ClassVar[str] = "exact_match,strict"
    """The metric for deployment: `primary` is right and the generation ended there, by EOS, with nothing but
    white space behind the answer. `primary - strict` is the share of answers that are right but do not stop."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """The metrics whose explanations begin with a kind (`timeout: ...`), which are counted beside the score."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Texts at which generation may end early; no metric depends on what would follow them."""
    max_new_tokens: ClassVar[int] = 256
    kind: ClassVar[Kind] = "generation"
    hub: ClassVar[HubData | None] = None
    definition: ClassVar[str | None] = None
    """Content of a task that was read from a file: the file as canonical JSON, which is its identity."""
    data: ClassVar[str | None] = None
    """Path of the rows if neither `--data` nor a study says otherwise."""
    stems: ClassVar[Mapping[str, str]] = STEMS
    """Split of a local file, by its name without suffix."""
    stems_are_named: ClassVar[bool] = False
    """The user named the files of the splits, so each of them must be there."""
    official_splits: ClassVar[bool] = False
    """Train and test were published as they are, so rows that stand in both are counted and kept, as everybody
    keeps them. What plr cuts itself is checked all the same."""

    json_holds_lines: ClassVar[bool] = False
    """The data is published as JSON lines in files called `.json`."""
    halves_validation: ClassVar[bool] = False
    """True if one half (seeded) of a validation split is the test split, where the source has none."""

    def metric(self, name: str) -> Metric:
        """Look up unit and direction of one of `metrics`, or of the answer loss that is measured beside them."""
        return find_metric(name, self.declared) or metric_named(name)

    @abstractmethod
    def prompt(self, row: Fields) -> str:
        """Write the text before the answer."""

    @abstractmethod
    def target(self, row: Fields) -> str:
        """Write the text right after the prompt, its leading space included; in training EOS follows it."""

    @abstractmethod
    def boundary(self, text: str) -> str:
        """Cut `text` where its first answer is complete; white space around it may be dropped."""

    def first_answer(self, example: Example, text: str) -> str:
        """Cut `text` where its first answer to `example` is complete: at the boundary, unless its gold reaches beyond."""
        return self.boundary(text)

    def finished(self, rest: str) -> bool:
        """Tell whether `rest`, the text behind the boundary, adds nothing to the answer."""
        return not rest.strip()

    @abstractmethod
    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        """Score by every metric but `strict` and `ended`, which are the same for all tasks."""

    def score(self, example: Example, response: Response) -> dict[str, Score]:
        """Compute one score for each of `metrics`, in that order. Nothing that a model writes raises."""
        return self.score_all([example], [response])[0]

    def score_all(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Score]]:
        """Compute `score` of each pair, in order. A set of samples is best scored at once: some scorers run side by side."""
        scored: list[dict[str, Score]] = []
        for example, scores, response in zip(examples, self.scores_all(examples, responses), responses, strict=True):
            strict = self._strict(example, scores[self.primary], response)
            every = scores | {self.strict: strict, "ended": self._ended(response)}
            scored.append({metric: every[metric] for metric in self.metrics})
        return scored

    def scores_all(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Score]]:
        """Compute `scores` of each pair; a task that scores a batch faster than its samples one by one says how here."""
        return [self.scores(example, response) for example, response in zip(examples, responses, strict=True)]

    def question(self, row: Fields) -> str:
        """Return the words of a held-out row that calibration text must not contain."""
        return str(row["question"]) if "question" in row else self.prompt(row)

    def duplicate_key(self, row: Fields) -> str | None:
        """Return the key by which rows are one row; None keeps them all."""
        return None

    def groups(self, row: Fields) -> frozenset[str]:
        """List the keys (one at least) that tie rows together: rows that share one never fall to two splits of a cut."""
        return frozenset({normalized(self.prompt(row))})

    def problem(self, row: Fields) -> str | None:
        """Explain what is wrong with a row that has all fields; None if nothing is."""
        return None

    def adopt(self, rows: list[Row]) -> list[Row]:
        """Adopt the rows of a source (one at least) as the task knows them, before any field is checked."""
        return rows

    def generated(self) -> GeneratedSource | None:
        """Make the rows of the task itself, where it reads no data set."""
        return None

    def load(self, split: str, data: TaskData | None = None) -> Split:
        """Load the examples of train, validation or test, and what was left out; errors as `load_split`."""
        return load_split(self, split, data or TaskData())

    def splits(self, data: TaskData | None = None) -> tuple[str, ...]:
        """List the splits that `load` can give, found without reading a row: a lone `train.jsonl` has no test."""
        return available_splits(self, data or TaskData())

    def _strict(self, example: Example, first: Score, response: Response) -> Score:
        if first.value != 1.0:
            return first
        rest = response.text.lstrip().removeprefix(self.first_answer(example, response.text).lstrip())
        if not self.finished(rest):
            return Score.of(False, first.answer, "right, but the generation went on behind the answer")
        return first if response.ended else Score.of(False, first.answer, "right, but without EOS")

    def _ended(self, response: Response) -> Score:
        """Score 1 if the model ended by EOS within the limit, and did not run into a stop text first."""
        ran_into = next((stop for stop in self.stop if stop and stop in response.text), None)
        if ran_into is not None:
            return Score.of(False, "", f"ran into {ran_into!r}")
        return Score.of(response.ended, "", "EOS" if response.ended else "no EOS within the limit")


def outcomes(task: Task, explanations: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Count for each of `task.kinds` the samples of each kind, the most frequent first.

    >>> from plr.tasks import tasks
    >>> rows = [{"exec_match,first-answer": text} for text in ("equal: on 10 databases", "timeout: 1 s", "equal: on 10")]
    >>> outcomes(tasks.get("tiny_sql"), rows)
    {'exec_match,first-answer': {'equal': 2, 'timeout': 1}}
    """
    counters = {
        name: Counter(row[name].partition(":")[0] for row in explanations if name in row) for name in task.kinds
    }
    return {name: dict(count.most_common()) for name, count in counters.items() if count}


tasks: Registry[Task] = Registry("task", "plr.tasks")
