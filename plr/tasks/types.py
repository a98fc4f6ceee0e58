"""The plain values that tasks take and give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from plr.core.fingerprint import fingerprint

__all__ = ["SPLITS", "Example", "Fields", "HeadSpec", "Kind", "LoadReport", "Response", "Split", "TaskData", "Texts"]

SPLITS = ("train", "validation", "test")
Kind = Literal["generation", "classification"]
"""Demand of a task on a model: to write an answer, or to choose a label (or give a number) with a head."""
Texts = tuple[str, str | None]
"""Input of a head: a text, or a pair."""
Fields: TypeAlias = Mapping[str, Any]
"""Fields of a row, by name: text, numbers and whatever else its source holds."""


@dataclass(frozen=True)
class HeadSpec:
    """The outputs of a classification head: one a label, in the order of `names`; or one number."""

    names: tuple[str, ...]
    """Names of the labels; empty for a number."""

    @property
    def regression(self) -> bool:
        return not self.names

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return len(self.names) or 1


@dataclass(frozen=True)
class Example:
    """One row, ready for use.

    `id` is `<split of the source>-<index there, from 0>`, whatever is filtered or drawn.
    """

    id: str
    row: Fields
    prompt: str
    target: str


@dataclass(frozen=True)
class Response:
    """A model's answer: `text` up to EOS, special tokens removed; `ended` if EOS came within the limit."""

    text: str
    ended: bool


@dataclass(frozen=True)
class TaskData:
    """Data that a task reads, and how much of it.

    `path` is a folder with `{train,validation|valid|val|dev,test}.{jsonl,json,csv,tsv}`, or one file: named for a
    split it is that split alone, under any other name it is divided into three, as any data set with one split is. None
    means the hub, or rows that the task makes itself. `revision` is a hub commit. `split_seed` seeds the cuts,
    `limit_seed` the drawing of `limit` rows. Rows with a prompt of more than `max_prompt_chars` characters are
    dropped and counted. `columns` are pairs of a field and the column of the source that it is read from.
    """

    path: str | None = None
    revision: str | None = None
    split_seed: int = 0
    max_prompt_chars: int | None = None
    limit: int | None = None
    limit_seed: int = 0
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """Counts of the rows that fell to one split: `rows` = `duplicates` + `too_long` + `not_drawn` + `kept`.

    `cut` says in words how the split was made where the source has no such split; else None.
    """

    task: str
    split: str
    source: str
    rows: int
    duplicates: int
    too_long: int
    not_drawn: int
    kept: int
    cut: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of a data set on the hub: each that was read, and the sha256 of its bytes."""


@dataclass(frozen=True)
class Split:
    """Examples in the order of the source, and what was left out."""

    examples: tuple[Example, ...]
    report: LoadReport

    @property
    def digest(self) -> str:
        """sha256 over ids, prompts and targets: equal if and only if the very same questions are asked."""
        return fingerprint([[example.id, example.prompt, example.target] for example in self.examples])

    @property
    def rows_sha256(self) -> str:
        """sha256 over the rows as they were read.

        Each is JSON with sorted keys on a line of its own: no task is needed to compute it again.
        """
        digest = hashlib.sha256()
        for example in self.examples:
            text = json.dumps(dict(example.row), sort_keys=True, ensure_ascii=False, default=str)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
