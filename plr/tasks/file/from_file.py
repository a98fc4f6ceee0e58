"""The tasks that a task file makes (`plr.tasks.file.schema`).

One whose answer is written, the same with the scores of a registered task, and one with a head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from plr.errors import DataError
from plr.scoring.by_name import METRICS
from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.scoring.sql.match import first_statement
from plr.tasks.base import Task, tasks
from plr.tasks.classification import Classification
from plr.tasks.data.hub import HubData
from plr.tasks.data.loading import row_problem
from plr.tasks.data.local import STEMS
from plr.tasks.data.sources import Row
from plr.tasks.data.splits import normalized
from plr.tasks.file.schema import NUMBERS, TaskFile
from plr.tasks.file.template import Template
from plr.tasks.types import SPLITS, Example, Fields, HeadSpec, Response, TaskData, Texts

__all__ = ["FileClassification", "FileGeneration", "FileScored"]

IN_CHOICES = "in_choices,first-answer"
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


class _FromFile(Task):
    """Common base of both kinds: where rows come from and which of their fields are read."""

    fields = ()  # checked in problem: a field may be a number here

    def __init__(self, file: TaskFile, definition: str) -> None:
        self.file = file
        self.name, self.version, self.kind = file.name, file.version, file.kind  # type: ignore[misc]
        self.definition = definition  # type: ignore[misc]
        self.data: str | None = None  # type: ignore[misc]
        if file.hub is not None:
            splits = dict(file.splits) or {name: name for name in SPLITS}
            self.hub = HubData(file.hub.id, file.hub.config, file.hub.revision, splits)  # type: ignore[misc]
        elif file.splits:
            self.stems = {stem.lower(): split for split, stem in file.splits.items()}  # type: ignore[misc]
            self.stems_are_named = True  # type: ignore[misc]
        else:
            self.stems = STEMS  # type: ignore[misc]

    def groups(self, row: Fields) -> frozenset[str]:
        prompt = normalized(self.prompt(row))
        group = self.file.group
        return frozenset({prompt} if group is None else {prompt, f"{group}: {row[group]}"})

    def problem(self, row: Fields) -> str | None:
        names = [*self._read(), *([self.file.group] if self.file.group else [])]
        for name in dict.fromkeys(names):
            if name not in row:
                return f"the field {name!r} is missing; given are {', '.join(map(str, row)) or 'none'}"
            value = row[name]
            if not isinstance(value, str | int | float):
                return f"the field {name!r} is {'empty' if value is None else f'a {type(value).__name__}'}, not text"
            if isinstance(value, float) and not math.isfinite(value):
                return f"the field {name!r} is {value}"
            if isinstance(value, str) and not value.strip():
                return f"the field {name!r} is empty"
        return self._trouble(row)

    def _read(self) -> Iterable[str]:
        raise NotImplementedError

    def _trouble(self, row: Fields) -> str | None:
        raise NotImplementedError


class FileGeneration(_FromFile):
    """An answer that is written."""

    def __init__(self, file: TaskFile, definition: str) -> None:
        super().__init__(file, definition)
        self.names = file.metric or ("exact_match",)
        binary = METRICS[self.names[0]].binary
        self.primary = f"{self.names[0]},first-answer"  # type: ignore[misc]
        self.strict = f"{self.names[0]},strict"  # type: ignore[misc]
        self.metrics = (  # type: ignore[misc]
            *(f"{name},first-answer" for name in self.names),
            *([IN_CHOICES] if file.choices else []),
            *([self.strict] if binary else []),
            "ended",
        )
        self.stop, self.max_new_tokens = file.stop, file.max_new_tokens  # type: ignore[misc]
        self._prompt, self._target = Template.parse(file.prompt or ""), Template.parse(file.target or "")
        self._choices = [Template.parse(text) for text in file.choices]

    def prompt(self, row: Fields) -> str:
        return self._prompt.fill(row)

    def target(self, row: Fields) -> str:
        return self._target.fill({**row, "choice": self._choice(row)} if self._choices else row)

    def question(self, row: Fields) -> str:
        return str(row["question"]) if "question" in self._prompt.fields else self.prompt(row)

    def choices(self, row: Fields) -> list[str]:
        """List the answers there are to choose from; none where the answer is free."""
        return [template.fill(row).strip() for template in self._choices]

    def boundary(self, text: str) -> str:
        text, ends = cut_at_stops(text, self.stop), self.file.boundary
        if ends == "statement":
            return first_statement(text)
        if ends == "text":
            return text.strip()
        text = text.lstrip()
        return (text.partition("\n")[0] if ends == "line" else _PARAGRAPH.split(text, maxsplit=1)[0]).rstrip()

    def first_answer(self, example: Example, text: str) -> str:
        if self.file.boundary == "statement" and "\n" in example.target.strip():
            return first_statement(cut_at_stops(text, self.stop), lines=True)
        return self.boundary(text)

    def finished(self, rest: str) -> bool:
        return not rest.strip("; \t\r\n" if self.file.boundary == "statement" else None)

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        answer, gold = self.first_answer(example, response.text), example.target.strip()
        scores = {f"{name},first-answer": METRICS[name].score(answer, gold) for name in self.names}
        if self._choices:  # what the primary metric calls right is a choice, whatever its case
            metric = METRICS[self.names[0]] if METRICS[self.names[0]].binary else METRICS["exact_match"]
            answers = (self._answer(example.row, choice) for choice in self.choices(example.row))
            known = any(metric.score(answer, one).value == 1.0 for one in answers)
            scores[IN_CHOICES] = Score.of(
                known, answer.strip(), "one of the choices" if known else "none of the choices"
            )
        return scores

    def _answer(self, row: Fields, choice: str) -> str:
        """Write the answer where `choice` is right."""
        return self._target.fill({**row, "choice": choice}).strip()

    def _read(self) -> Iterable[str]:
        names = [name for part in (self._prompt, self._target, *self._choices) for name in part.fields]
        return [
            *(name for name in names if not (self._choices and name == "choice")),
            *([self.file.label] if self.file.label else []),
        ]

    def _choice(self, row: Fields) -> str:
        place = self._place(row)
        assert place is not None
        return self.choices(row)[place]

    def _place(self, row: Fields) -> int | None:
        """Find the choice that the label of `row` means: its text, or its place. Where choices read fields a number is a place."""
        by_text, by_place = self._readings(row)
        label = row[self.file.label or ""]
        number = isinstance(label, int) and not isinstance(label, bool)
        if number and any(template.fields for template in self._choices):
            return by_place
        return by_place if by_text is None else by_text

    def _readings(self, row: Fields) -> tuple[int | None, int | None]:
        """Read the label of `row` as the text of a choice, and as the place of one."""
        text, choices = str(row[self.file.label or ""]).strip(), self.choices(row)
        return choices.index(text) if text in choices else None, _whole(text, len(choices))

    def _trouble(self, row: Fields) -> str | None:
        if not self._choices:
            return None if self.target(row).strip() else "the target is empty"
        label, choices = row[self.file.label or ""], self.choices(row)
        if self._place(row) is None:
            return f"the label {label!r} is none of the choices {', '.join(choices)}, nor the place of one from 0"
        by_text, by_place = self._readings(row)
        either = by_text is not None and by_place is not None and choices[by_text] != choices[by_place]
        if either and isinstance(label, str) and any(template.fields for template in self._choices):
            return (
                f"the label {label!r} is the text of one choice and the place of another ({choices[by_place or 0]}): "
                f"in JSON write the place as a number, {label} without quotes"
            )
        return None


class FileScored(FileGeneration):
    """An answer that is written, with the metrics, the boundary and the gold of a registered task.

    That task sees rows as it knows them, with its own prompt and target, and texts that end at the stops of the file or its own.
    Rows that it ties together are tied here too.
    """

    def __init__(self, file: TaskFile, definition: str) -> None:
        super().__init__(file, definition)
        self.scorer = scorer = tasks.get(file.scorer or "")
        self.metrics, self.primary = scorer.metrics, scorer.primary  # type: ignore[misc]
        self.strict, self.kinds = scorer.strict, scorer.kinds  # type: ignore[misc]
        self.stop = tuple(dict.fromkeys((*file.stop, *scorer.stop)))  # type: ignore[misc]

    def adopt(self, rows: list[Row]) -> list[Row]:
        return self.scorer.adopt(rows)

    def question(self, row: Fields) -> str:
        return self.scorer.question(row)

    def duplicate_key(self, row: Fields) -> str | None:
        theirs = self.scorer.duplicate_key(row)
        return None if theirs is None else f"{theirs}\n{normalized(self.prompt(row))}"

    def groups(self, row: Fields) -> frozenset[str]:
        return super().groups(row) | {f"{self.scorer.name}: {key}" for key in self.scorer.groups(row)}

    def boundary(self, text: str) -> str:
        return self.scorer.boundary(cut_at_stops(text, self.stop))

    def first_answer(self, example: Example, text: str) -> str:
        return self.scorer.first_answer(example, cut_at_stops(text, self.stop))

    def finished(self, rest: str) -> bool:
        return self.scorer.finished(rest)

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        return self.scores_all([example], [response])[0]

    def scores_all(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Score]]:
        scorer = self.scorer
        theirs = [replace(one, prompt=scorer.prompt(one.row), target=scorer.target(one.row)) for one in examples]
        return scorer.scores_all(theirs, [replace(one, text=cut_at_stops(one.text, self.stop)) for one in responses])

    def _trouble(self, row: Fields) -> str | None:
        problem = row_problem(self.scorer, Row("", 0, row, ""))
        return super()._trouble(row) if problem is None else f"{problem[0]}, as its scorer {self.scorer.name} reads it"


class FileClassification(_FromFile, Classification):
    """A label, or a number, from a head."""

    def __init__(self, file: TaskFile, definition: str) -> None:
        super().__init__(file, definition)
        self.metrics = file.metric or ("acc",)  # type: ignore[misc]
        self.primary = self.metrics[0]  # type: ignore[misc]
        self.numeric = self.primary in NUMBERS
        self._texts = [Template.parse(text) for text in file.texts]
        self._label = file.label or ""

    def labels(self, data: TaskData | None = None) -> tuple[str, ...]:
        if self.numeric or self.file.labels:
            return self.file.labels
        names = sorted({example.target for example in self.load("train", data).examples})
        if len(names) < 2:
            raise DataError(f"the train split has one label, {names[0]!r}", expected="two at least")
        if "f1" in self.metrics and len(names) > 2:
            raise DataError(
                f"f1 is of two labels, and the train split has {len(names)}: {', '.join(names[:8])}",
                hint="take f1 out of the task file: acc and mcc are of any number of labels",
            )
        return tuple(names)

    def label(self, row: Fields, head: HeadSpec | None = None) -> int | float:
        if self.numeric:
            return float(row[self._label])
        names, name = self.file.labels or (head.names if head else ()), self.target(row)
        if name not in names:
            raise DataError(
                f"the label {name!r} stands in no row of the train split",
                expected="one of " + ", ".join(names) if names else "the head of the task",
            )
        return names.index(name)

    def target(self, row: Fields) -> str:
        value = row[self._label]
        if self.numeric:
            return f"{float(value):g}"
        place = self._place(value)
        return str(value).strip() if place is None else self.file.labels[place]

    def texts(self, row: Fields) -> Texts:
        first, *second = (template.fill(row) for template in self._texts)
        return first, second[0] if second else None

    def _place(self, value: object) -> int | None:
        """Find the place of a label among the named ones: by its text, or as a whole number."""
        names, text = self.file.labels, str(value).strip()
        return names.index(text) if text in names else _whole(text, len(names))

    def _read(self) -> Iterable[str]:
        return [*(name for template in self._texts for name in template.fields), self._label]

    def _trouble(self, row: Fields) -> str | None:
        value = row[self._label]
        if self.numeric:
            try:
                return None if math.isfinite(float(value)) else f"the label is {value!r}"
            except (ValueError, OverflowError):
                return f"the label is {repr(value)[:80]}, not a number"
        if self.file.labels and self._place(value) is None:
            return f"the label is {value!r}, not one of {', '.join(self.file.labels)}"
        return None


def _whole(text: str, below: int) -> int | None:
    """Read the place that `text` writes, from 0 and under `below`; None if it writes none."""
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) < below else None
