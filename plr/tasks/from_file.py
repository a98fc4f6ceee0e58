"""The tasks that a task file makes: one whose answer is written, one with a head (:mod:`plr.tasks.task_file`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from plr.errors import DataError
from plr.scoring.by_name import METRICS
from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.scoring.sql import first_statement
from plr.tasks.base import Task
from plr.tasks.classification import Classification
from plr.tasks.hub import HubData
from plr.tasks.local import STEMS
from plr.tasks.splits import normalized
from plr.tasks.task_file import NUMBERS, TaskFile
from plr.tasks.template import Template
from plr.tasks.types import SPLITS, Example, HeadSpec, Response, TaskData, Texts

__all__ = ["FileClassification", "FileGeneration"]

IN_CHOICES = "in_choices,first-answer"
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


class _FromFile(Task):
    """What both kinds share: where rows come from and which of their fields are read."""

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
        else:
            self.stems = STEMS  # type: ignore[misc]

    def groups(self, row: Mapping[str, Any]) -> frozenset[str]:
        prompt = normalized(self.prompt(row))
        group = self.file.group
        return frozenset({prompt} if group is None else {prompt, f"{group}: {row[group]}"})

    def problem(self, row: Mapping[str, Any]) -> str | None:
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

    def _trouble(self, row: Mapping[str, Any]) -> str | None:
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

    def prompt(self, row: Mapping[str, Any]) -> str:
        return self._prompt.fill(row)

    def target(self, row: Mapping[str, Any]) -> str:
        return self._target.fill({**row, "choice": self._choice(row)} if self._choices else row)

    def question(self, row: Mapping[str, Any]) -> str:
        return str(row["question"]) if "question" in self._prompt.fields else self.prompt(row)

    def choices(self, row: Mapping[str, Any]) -> list[str]:
        """The answers there are to choose from; none where the answer is free."""
        return [template.fill(row).strip() for template in self._choices]

    def boundary(self, text: str) -> str:
        text, ends = cut_at_stops(text, self.stop), self.file.boundary
        if ends == "statement":
            return first_statement(text)
        if ends == "text":
            return text.strip()
        text = text.lstrip()
        return (text.partition("\n")[0] if ends == "line" else _PARAGRAPH.split(text, maxsplit=1)[0]).rstrip()

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        answer, gold = self.boundary(response.text), example.target.strip()
        scores = {f"{name},first-answer": METRICS[name].score(answer, gold) for name in self.names}
        if self._choices:
            known = answer.strip() in {self._answer(example.row, choice) for choice in self.choices(example.row)}
            scores[IN_CHOICES] = Score.of(
                known, answer.strip(), "one of the choices" if known else "none of the choices"
            )
        return scores

    def _answer(self, row: Mapping[str, Any], choice: str) -> str:
        """What is written where ``choice`` is right."""
        return self._target.fill({**row, "choice": choice}).strip()

    def _read(self) -> Iterable[str]:
        names = [name for part in (self._prompt, self._target, *self._choices) for name in part.fields]
        return [
            *(name for name in names if not (self._choices and name == "choice")),
            *([self.file.label] if self.file.label else []),
        ]

    def _choice(self, row: Mapping[str, Any]) -> str:
        place = self._place(row)
        assert place is not None
        return self.choices(row)[place]

    def _place(self, row: Mapping[str, Any]) -> int | None:
        """Which choice the label of ``row`` means: its place as a whole number, or its text."""
        label, choices = row[self.file.label or ""], self.choices(row)
        if isinstance(label, int) and not isinstance(label, bool):
            return label if 0 <= label < len(choices) else None
        text = str(label).strip()
        if text in choices:
            return choices.index(text)
        return int(text) if text.isdecimal() and int(text) < len(choices) else None

    def _trouble(self, row: Mapping[str, Any]) -> str | None:
        if not self._choices:
            return None if self.target(row).strip() else "the target is empty"
        if self._place(row) is not None:
            return None
        label = row[self.file.label or ""]
        return f"the label {label!r} is none of the choices {', '.join(self.choices(row))}, nor the place of one from 0"


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
        return tuple(names)

    def label(self, row: Mapping[str, Any], head: HeadSpec | None = None) -> int | float:
        if self.numeric:
            return float(row[self._label])
        names, name = self.file.labels or (head.names if head else ()), self.target(row)
        if name not in names:
            raise DataError(
                f"the label {name!r} stands in no row of the train split",
                expected="one of " + ", ".join(names) if names else "the head of the task",
            )
        return names.index(name)

    def target(self, row: Mapping[str, Any]) -> str:
        value = row[self._label]
        if self.numeric:
            return f"{float(value):g}"
        place = self._place(value)
        return str(value).strip() if place is None else self.file.labels[place]

    def texts(self, row: Mapping[str, Any]) -> Texts:
        first, *second = (template.fill(row) for template in self._texts)
        return first, second[0] if second else None

    def _place(self, value: Any) -> int | None:
        """The place of a label among the named ones: by its text, or as a whole number."""
        names, text = self.file.labels, str(value).strip()
        if text in names:
            return names.index(text)
        return int(text) if text.isdecimal() and int(text) < len(names) else None

    def _read(self) -> Iterable[str]:
        return [*(name for template in self._texts for name in template.fields), self._label]

    def _trouble(self, row: Mapping[str, Any]) -> str | None:
        value = row[self._label]
        if self.numeric:
            try:
                return None if math.isfinite(float(value)) else f"the label is {value!r}"
            except ValueError:
                return f"the label is {value!r}, not a number"
        if self.file.labels and self._place(value) is None:
            return f"the label is {value!r}, not one of {', '.join(self.file.labels)}"
        return None
