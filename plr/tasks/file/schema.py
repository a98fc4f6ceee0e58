"""A task of one's own in one YAML file.

A file whose answer is written (`kind: generation`, the default)::

    name: capitals
    data: capitals.tsv                     # beside this file; or hub: ORG/NAME; or --data with every command
    prompt: "Question: What is the capital of {country}?\\nAnswer:"
    target: " {capital}"
    metric: [exact_match, exact_match_folded]
    stop: ["Question:"]
    max_new_tokens: 16

With `choices` the answer is one of them: `label` is the field that says which (its text, or its place from 0; where choices
read fields a number is always a place), and in the target `{choice}` stands for it. A model's answer that is none of them is
wrong, and counted (`in_choices`)::

    prompt: "{question}\\n1. {choice0}\\n2. {choice1}\\nAnswer:"
    choices: ["{choice0}", "{choice1}"]
    label: label
    target: " {choice}"

With `scorer` an answer is scored as that registered task scores its own: all its metrics, its boundary, and its gold, which it
reads from the row, so a row must have the fields of that task (`plr tasks show gsm8k` has one). This is how another wording
of GSM8K, or what `plr tasks transform` made of it, keeps `exact_match,strict-match` and the others::

    prompt: "Solve this.\\n{question}\\n"
    target: "{answer}"
    scorer: gsm8k

With a head (`kind: classification`)::

    kind: classification
    texts: ["{premise}", "{hypothesis}"]   # one or two
    label: label
    labels: [entailment, neutral]          # in the order of whole-number labels; if left out: those of train, sorted
    metric: [acc, f1]                      # pearson and spearman: the label is a number, there are no labels

How it works:

1. Templates take plain `{field}` names (`plr.tasks.file.template`); no code is in the file, none is run.
2. The first metric is the primary one (with `scorer`: that of its task). Each is measured on the first answer:
   `exact_match,first-answer`; `boundary` says where that is complete: at the end of the `line` (default), of the
   `paragraph`, of the SQL `statement`, or only at the end of the `text`. Beside a primary metric that is right or wrong
   stands its `strict` twin, and `ended` beside every one.
3. Everything in the file but `data` is part of the identity of what is trained or scored with it, in canonical form: a comment
   changes nothing, a template changes everything; with `scorer` the version of that task too. The rows count by their content.
4. The definition travels in the step: an adapter can be evaluated when the file is gone.

Given up: several right answers for one row, fields inside fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from plr.registry import did_you_mean
from plr.scoring.by_name import METRICS
from plr.scoring.classification import METRICS as HEAD_METRICS
from plr.tasks.base import tasks
from plr.tasks.file.template import Template
from plr.tasks.types import Kind

__all__ = ["NUMBERS", "HubPart", "TaskFile"]

NUMBERS = ("pearson", "spearman")


class HubPart(BaseModel, frozen=True, extra="forbid"):
    """A data set on the hub."""

    id: str
    """`ORG/NAME`."""
    config: str | None = None
    """One of its configurations, if it has several."""
    revision: str | None = None
    """A commit, branch or tag; pinned to the commit when a study is planned."""

    @field_validator("id")
    @classmethod
    def _repository(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
            raise ValueError("a data set on the hub is ORG/NAME, without the address before it")
        return value


class TaskFile(BaseModel, frozen=True, extra="forbid"):
    """A task file. `prompt` and `target` are needed for an answer that is written, `texts` and `label` for a head."""

    name: str
    """Name in tables and results; that of the file if left out."""
    version: int = Field(default=1, ge=1)
    """Yours to raise when the same file comes to mean something else."""
    kind: Kind = "generation"
    """The answer is written (`generation`), or chosen by a classification head (`classification`)."""
    data: str | None = None
    """A folder or file, from where the task file lies."""
    hub: HubPart | None = None
    """A data set on the hub, in place of `data`."""
    splits: dict[Literal["train", "validation", "test", "all"], str] = Field(default_factory=dict)
    """Our split: its name on the hub, or its file without suffix; `all`: the only one, to be cut into three."""
    prompt: str | None = None
    """Template of the question; `{field}` reads a field of the row."""
    target: str | None = None
    """Template of the gold answer, usually with a space before it."""
    choices: tuple[str, ...] = ()
    """Templates of the possible answers; `{choice}` in the target is the right one."""
    texts: tuple[str, ...] = ()
    """Templates of one or two texts that a head reads."""
    label: str | None = None
    """The field that says which choice or label is right: its text, or its place from 0."""
    labels: tuple[str, ...] = ()
    """Names of a head's labels, in the order of whole-number labels; if left out, those of train, sorted."""
    metric: tuple[str, ...] = ()
    """Metrics by name, the primary one first."""
    scorer: str | None = None
    """A registered task: its metrics, boundary and gold in place of `metric` and `boundary`."""
    boundary: Literal["line", "paragraph", "statement", "text"] = "line"
    """Boundary of the first answer: end of the line, paragraph, SQL statement, or of the whole text."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    group: str | None = None
    """A field: rows that share its value never fall to two splits of a cut."""

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z][\w-]*", value):
            raise ValueError("a name is a letter, then letters, digits, _ and -: write name: NAME into the file")
        return value

    @field_validator("label", "group")
    @classmethod
    def _field(cls, value: str | None) -> str | None:
        if value is not None and set(value) & set("{}"):
            raise ValueError("this is the name of a field, without braces")
        return value

    @field_validator("splits")
    @classmethod
    def _each_once(cls, value: dict[str, str]) -> dict[str, str]:
        if len({theirs.lower() for theirs in value.values()}) < len(value):
            raise ValueError(f"two splits are read from one place: {', '.join(f'{k}: {v}' for k, v in value.items())}")
        if "all" in value and len(value) > 1:
            raise ValueError("all is the only split there is, to be cut into three: name no other beside it")
        return value

    @field_validator("hub", mode="before")
    @classmethod
    def _hub_id(cls, value: object) -> object:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("texts", "metric", "stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("labels", "choices", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        for item in value:
            if isinstance(item, bool):
                raise ValueError(f"YAML reads an item as {item}: put yes, no, on, off, true and false in quotes")
        return [str(item) if isinstance(item, int | float) else item for item in value]

    @field_validator("prompt", "target", "choices", "texts")
    @classmethod
    def _templates(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for text in (value,) if isinstance(value, str) else value or ():
            Template.parse(text)
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TaskFile:
        generation = self.kind == "generation"
        here, there = ("generation", "classification") if generation else ("classification", "generation")
        foreign = ("texts", "labels") if generation else ("prompt", "target", "choices", "stop", "scorer")
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

    def _check_metrics(self, known: Iterable[str]) -> None:
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
        prompt = Template.parse(self.prompt or "")
        if not prompt.fields:
            raise ValueError("prompt reads no field of the row, {question} does ({{ and }} write braces)")
        if bool(self.choices) != (self.label is not None):
            raise ValueError("choices and label go together: label is the field that says which choice is right")
        if self.choices and "choice" not in target.fields:
            raise ValueError("target must hold {choice}, the right one of choices")
        if self.choices and "choice" in {
            *prompt.fields,
            *(f for text in self.choices for f in Template.parse(text).fields),
        }:
            raise ValueError(
                "{choice} is the right one of choices: it stands in target, and neither in prompt nor in choices"
            )
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise ValueError("choices must be two at least, and no two the same")
        if "" in self.stop:
            raise ValueError("a stop text is empty")
        self._check_scorer()

    def _check_scorer(self) -> None:
        if self.scorer is None:
            return
        if self.metric or self.choices or self.boundary != "line":
            raise ValueError("scorer brings its own metrics and boundary: no metric, boundary or choices beside it")
        if self.scorer not in tasks.names():
            advice = did_you_mean(self.scorer, tasks.names()) or "the registered tasks: plr tasks"
            raise ValueError(f"scorer {self.scorer} is no registered task: {advice}")
        if tasks.get(self.scorer).kind != "generation":
            raise ValueError(f"scorer {self.scorer} judges a head, and the answer of this task is written")

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
        if "f1" in self.metric and len(self.labels) > 2:
            raise ValueError(f"f1 is of two labels, and there are {len(self.labels)}: acc and mcc take any number")
