"""A task of one's own in one YAML file.

A file whose answer is written (``kind: generation``, the default)::

    name: capitals
    data: capitals.tsv                     # beside this file; or hub: ORG/NAME; or --data with every command
    prompt: "Question: What is the capital of {country}?\\nAnswer:"
    target: " {capital}"
    metric: [exact_match, exact_match_folded]
    stop: ["Question:"]
    max_new_tokens: 16

With ``choices`` the answer is one of them: ``label`` is the field that says which (its place from 0, or its text), and in the
target ``{choice}`` stands for it. A model's answer that is none of them is wrong, and counted (``in_choices``)::

    prompt: "{question}\\n1. {choice0}\\n2. {choice1}\\nAnswer:"
    choices: ["{choice0}", "{choice1}"]
    label: label
    target: " {choice}"

With a head (``kind: classification``)::

    kind: classification
    texts: ["{premise}", "{hypothesis}"]   # one or two
    label: label
    labels: [entailment, neutral]          # in the order of whole-number labels; if left out: those of train, sorted
    metric: [acc, f1]                      # pearson and spearman: the label is a number, there are no labels

How it works:

1. Templates take plain ``{field}`` names (:mod:`plr.tasks.template`); no code is in the file, none is run.
2. The first metric is the primary one. Each is measured on the first answer: ``exact_match,first-answer``; ``boundary`` says where
   that is complete: at the end of the ``line`` (default), of the ``paragraph``, of the SQL ``statement``, or only at the end of
   the ``text``. Beside a primary metric that is right or wrong stands its ``strict`` twin, and ``ended`` beside every one.
3. Everything in the file but ``data`` is part of the identity of what is trained or scored with it, in canonical form: a comment
   changes nothing, a template changes everything. The rows count by their content, as always.
4. The definition travels in the step: an adapter can be evaluated when the file is gone.

Given up: several right answers for one row, few-shot prompts (write them into the template), fields inside fields.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from plr.config import load_yaml, parse
from plr.errors import ConfigError
from plr.fingerprint import canonical_json
from plr.registry import did_you_mean
from plr.scoring.by_name import METRICS
from plr.scoring.classification import METRICS as HEAD_METRICS
from plr.specs import TaskSpec
from plr.tasks.base import Task, tasks
from plr.tasks.template import Template
from plr.tasks.types import Kind

__all__ = ["HubPart", "TaskFile", "find_task", "is_task_file", "read_task", "task_of"]

FORMAT = 1
"""Raised when the same file comes to mean something else, a default among it."""
NUMBERS = ("pearson", "spearman")
BOUNDARIES = ("line", "paragraph", "statement", "text")


class HubPart(BaseModel, frozen=True, extra="forbid"):
    """A data set on the hub."""

    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    config: str | None = None
    revision: str | None = None


class TaskFile(BaseModel, frozen=True, extra="forbid"):
    """The keys of the file."""

    name: str = Field(pattern=r"^[A-Za-z][\w-]*$")
    version: int = Field(default=1, ge=1)
    kind: Kind = "generation"
    data: str | None = None
    """A folder or file, from where the task file lies."""
    hub: HubPart | None = None
    splits: dict[Literal["train", "validation", "test", "all"], str] = Field(default_factory=dict)
    """Our split -> its name on the hub, or the name of its file without suffix; ``all``: the only one, to be cut."""
    prompt: str | None = None
    target: str | None = None
    choices: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] = ()
    metric: tuple[str, ...] = ()
    boundary: Literal["line", "paragraph", "statement", "text"] = "line"
    stop: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=256, ge=1)
    group: str | None = None
    """A field: rows that share its value never fall to two splits of a cut."""

    @field_validator("hub", mode="before")
    @classmethod
    def _hub_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("texts", "metric", "stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("labels", "choices", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for item in value:
            if isinstance(item, bool):
                raise ValueError(f"YAML reads an item as {item}: put yes, no, on, off, true and false in quotes")
        return [str(item) if isinstance(item, int | float) else item for item in value]

    @field_validator("prompt", "target", "choices", "texts")
    @classmethod
    def _templates(cls, value: str | tuple[str, ...] | None) -> Any:
        for text in (value,) if isinstance(value, str) else value or ():
            Template.parse(text)
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TaskFile:
        generation = self.kind == "generation"
        here, there = ("generation", "classification") if generation else ("classification", "generation")
        foreign = ("texts", "labels") if generation else ("prompt", "target", "choices", "stop")
        for key in foreign:
            if getattr(self, key):
                raise ValueError(f"{key} belongs to kind: {there}, and this task is of kind {here}")
        for key in ("prompt", "target") if generation else ("texts", "label"):
            if not getattr(self, key):
                raise ValueError(f"{key} is missing: a task of kind {here} needs it")
        if self.data is not None and self.hub is not None:
            raise ValueError("data and hub are both given: rows come from one place")
        self._check_metrics(METRICS if generation else HEAD_METRICS)
        self._check_generation() if generation else self._check_classification()
        return self

    def _check_metrics(self, known: Any) -> None:
        for name in self.metric:
            if name not in known:
                advice = did_you_mean(name, known) or "known: " + ", ".join(known)
                raise ValueError(f"there is no metric {name} for kind {self.kind}: {advice}")
        if len(set(self.metric)) != len(self.metric):
            raise ValueError("metric names something twice")

    def _check_generation(self) -> None:
        target = Template.parse(self.target or "")
        if not target.fields:
            raise ValueError(f"target {self.target!r} reads no field of the row: write its field in braces, {{answer}}")
        if not Template.parse(self.prompt or "").fields:
            raise ValueError("prompt reads no field of the row: every row would have the same")
        if bool(self.choices) != (self.label is not None):
            raise ValueError("choices and label go together: label is the field that says which choice is right")
        if self.choices and "choice" not in target.fields:
            raise ValueError("target must hold {choice}, the right one of choices")
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise ValueError("choices must be two at least, and no two the same")
        if "" in self.stop:
            raise ValueError("a stop text is empty")

    def _check_classification(self) -> None:
        if len(self.texts) > 2:
            raise ValueError(f"texts has {len(self.texts)} entries: a head reads one text or a pair")
        if not any(Template.parse(text).fields for text in self.texts):
            raise ValueError("texts read no field of the row: write {text}")
        numbers = [name for name in self.metric if name in NUMBERS]
        if numbers and (self.labels or len(numbers) != len(self.metric)):
            raise ValueError(f"{' and '.join(numbers)} compare numbers: no labels, and no other metric beside them")
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be two at least, and no two the same")


def is_task_file(name: str) -> bool:
    """Whether ``name`` names a file and not a registered task."""
    return name.lower().endswith((".yaml", ".yml"))


def find_task(name: str) -> Task:
    """The registered task ``name``, or the task in the file ``name``, read anew.

    Raises:
        UnknownNameError: no such task.
        ConfigError: see :func:`read_task`.
    """
    return read_task(Path(name).expanduser()) if is_task_file(name) else tasks.get(name)


def read_task(path: Path) -> Task:
    """The task in a YAML file; its name is that of the file if it gives none.

    Raises:
        ConfigError: no such file, no valid YAML, keys that do not fit, or the name of a task that plr has already.
    """
    file = parse(TaskFile, {"name": path.stem, **load_yaml(path)}, str(path))
    if file.name in tasks.names():
        raise ConfigError(
            f"{path}: there is already a task called {file.name}",
            expected="a name of its own",
            hint="write name: NAME into the file",
        )
    task = _task_from(_definition(file))
    if file.data is not None:
        task.data = str((path.parent / Path(file.data).expanduser()).absolute())  # type: ignore[misc]
    return task


def task_of(spec: TaskSpec) -> Task:
    """The task of a resolved spec, from the registry or from the definition that it carries."""
    return tasks.get(spec.name) if spec.definition is None else _kept(spec.definition)


@lru_cache(maxsize=64)
def _kept(definition: str) -> Task:
    return _task_from(definition)


def _task_from(definition: str) -> Task:
    from plr.tasks.from_file import FileClassification, FileGeneration

    value = json.loads(definition)
    if value.pop("format") != FORMAT:
        raise ConfigError("the definition of this task was written by another version of plr", hint="use that version")
    file = parse(TaskFile, value, f"task {value.get('name')}")
    return (FileGeneration if file.kind == "generation" else FileClassification)(file, definition)


def _definition(file: TaskFile) -> str:
    """Everything that bears on prompts, targets, splits and scores; where the rows lie does not."""
    kept = file.model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    return canonical_json({"format": FORMAT, "name": file.name, **kept})
