"""Rows for the steps: a task's splits, read once a process, and calibration text.

Before anything is hashed a task's data is resolved: local files to their sha256, a hub data set to its commit. Before any row
is used for calibration or training it is compared with the validation and test splits (`guarded_train`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from plr.core.fingerprint import file_sha256, fingerprint
from plr.core.specs import Calibration, CalibrationKnobs, TaskSpec
from plr.core.text import json_lines, read_text
from plr.errors import DataError, HubDataUnreachable, HubUnreachable, UsageError
from plr.hub import cached_sha, commit_sha, is_offline, is_sha
from plr.tasks import (
    Classification,
    Example,
    HeadSpec,
    Split,
    TaskData,
    Texts,
    check_leakage,
    check_text_leakage,
    find_task,
    task_of,
)
from plr.tasks.data.hub import HubData, HubSource, hub_advice
from plr.tasks.data.local import SUFFIXES
from plr.tasks.data.splits import choose, normalized

__all__ = [
    "CalibrationText",
    "calibration_text",
    "data_record",
    "draw",
    "guard_other",
    "guarded_train",
    "has_split",
    "head_of",
    "load_split",
    "read_texts",
    "resolve_file",
    "resolve_task",
    "seen_in_train",
    "undrawn_texts",
]


def resolve_task(
    name: str,
    *,
    data: str | None = None,
    split_seed: int = 0,
    max_prompt_chars: int | None = None,
    columns: Mapping[str, str] | None = None,
    offline: bool = False,
) -> TaskSpec:
    """Resolve the identity of a task with its data; `name` is that of a registered task, or a task file.

    Raises:
        UnknownNameError: no such task.
        ConfigError: a task file that cannot be read.
        DataError: `data` is not there, or the hub data set cannot be resolved.
        HubError: the hub does not know the data set, refuses it, or cannot be asked (HubUnreachable).
    """
    task = find_task(name)
    common: dict[str, Any] = {
        "name": name if task.definition is None else task.name,
        "version": task.version,
        "definition": task.definition,
        "split_seed": split_seed,
        "max_prompt_chars": max_prompt_chars,
        "columns": tuple(sorted((columns or {}).items())),
    }
    if data == "":
        raise DataError("the name of the data is an empty text", expected="a folder or a file, e.g. --data my-data")
    data = task.data if data is None else data
    if data is not None:
        path = Path(os.path.expanduser(data)).absolute()
        return TaskSpec(**common, path=str(path), data_sha256=_data_sha256(path))
    if task.hub is not None:
        return TaskSpec(**common, revision=_hub_commit(common["name"], task.hub, offline=offline))
    return TaskSpec(**common)


def resolve_file(text: str, knobs: CalibrationKnobs, *, guard: TaskSpec | None = None) -> Calibration:
    """Resolve a JSONL or text file to calibrate on, by its content.

    Raises:
        DataError: there is no such file.
    """
    path = Path(os.path.expanduser(text)).absolute()
    if not path.is_file():
        raise DataError(f"there is no calibration file {path}", expected="a .jsonl or text file, or task:NAME")
    own = knobs.model_dump(include={*CalibrationKnobs.model_fields})
    return Calibration(path=str(path), file_sha256=file_sha256(path), guard=guard, **own)


@lru_cache(maxsize=32)
def load_split(spec: TaskSpec, split: str) -> Split:
    """Load one split of a task, read once a process.

    Raises:
        DataError: the files changed since the task was resolved, or cannot be read.
    """
    if spec.path is not None and _data_sha256(Path(spec.path)) != spec.data_sha256:
        raise DataError(
            f"{spec.path} changed since this study was planned", hint="run the command again: the data is resolved anew"
        )
    return task_of(spec).load(split, _task_data(spec))


def data_record(spec: TaskSpec, split: str) -> dict[str, object]:
    """Describe the rows behind a result, so that anyone can check them: commit, files and checksums.

    `rows_sha256` is over the rows themselves (`plr.tasks.Split.rows_sha256`), `prompts_sha256` over ids, prompts and
    targets.

    Raises:
        DataError: as `load_split`.
    """
    loaded = load_split(spec, split)
    return {
        "source": loaded.report.source,
        "split": split,
        "revision": spec.revision,
        "data_sha256": spec.data_sha256,
        "files": dict(loaded.report.files),
        "rows": loaded.report.kept,
        "rows_sha256": loaded.rows_sha256,
        "prompts_sha256": loaded.digest,
    }


def _task_data(spec: TaskSpec) -> TaskData:
    return TaskData(
        path=spec.path,
        revision=spec.revision,
        split_seed=spec.split_seed,
        max_prompt_chars=spec.max_prompt_chars,
        columns=spec.columns,
    )


@lru_cache(maxsize=32)
def guarded_train(spec: TaskSpec) -> tuple[Example, ...]:
    """Load the train split, after proof that none of its rows stands in validation or test.

    Between splits that were published as they are (`Task.official_splits`) equal rows are no error: see
    `seen_in_train`.

    Raises:
        LeakageError: some do; the first of them are named.
    """
    rows = load_split(spec, "train").examples
    official = task_of(spec).official_splits
    check_leakage(
        rows,
        {
            split: examples
            for split, examples in _held_out(spec).items()
            if not official or load_split(spec, split).report.cut is not None
        },
    )
    return rows


def guard_other(trained: TaskSpec, scored: TaskSpec, rows: Sequence[Example]) -> None:
    """Prove that `rows` of `scored` do not stand in the train split of `trained`, where the two are not one task.

    Raises:
        LeakageError: some do; the first of them are named.
    """
    if trained.identity() != scored.identity():
        check_leakage(load_split(trained, "train").examples, {scored.name: rows})


@lru_cache(maxsize=32)
def seen_in_train(spec: TaskSpec, split: str) -> frozenset[str]:
    """Return the ids of the rows of `split` whose prompt stands in the train split too."""
    if split == "train" or not has_split(spec, "train"):
        return frozenset()
    train = {normalized(row.prompt) for row in load_split(spec, "train").examples}
    return frozenset(row.id for row in load_split(spec, split).examples if normalized(row.prompt) in train)


@lru_cache(maxsize=32)
def head_of(spec: TaskSpec) -> HeadSpec | None:
    """Return the classification head that the task needs; None for a task whose answer is written.

    Raises:
        DataError: labels that depend on data which cannot be read.
    """
    task = task_of(spec)
    return task.head(_task_data(spec)) if isinstance(task, Classification) else None


def draw(rows: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """Draw `limit` rows with `seed`, in source order; a larger limit draws a superset, None takes all."""
    return choose(rows, limit, seed, lambda row: row.id)


@dataclass(frozen=True)
class CalibrationText:
    """Drawn calibration samples: either prompt and target, or plain text with an empty target."""

    ids: list[str]
    pairs: list[tuple[str, str]]
    report: dict[str, object] = field(default_factory=dict)
    texts: list[Texts] | None = None
    """Texts that a classification head reads, where the task is of that kind; the labels are no part of it."""


def calibration_text(calibration: Calibration) -> CalibrationText:
    """Draw the samples of `calibration`, and compare them with the held-out rows of its task or `guard`.

    Raises:
        DataError: the file holds no text, fewer samples than are asked for, or changed.
        LeakageError: samples that stand in validation or test.
    """
    if calibration.task is not None:
        rows = draw(guarded_train(calibration.task), calibration.samples, calibration.seed)
        _check_enough(calibration, len(rows), f"the train split of {calibration.task.name}")
        ids, pairs = [row.id for row in rows], [(row.prompt, row.target) for row in rows]
        task = task_of(calibration.task)
        judged = [task.texts(row.row) for row in rows] if isinstance(task, Classification) else None
        return CalibrationText(ids, pairs, _report(calibration, ids, pairs), judged)
    texts, order = _shuffled(calibration)
    _check_enough(calibration, len(texts), calibration.path or "")
    chosen = sorted(order[: calibration.samples])
    ids, pairs = [f"line-{i}" for i in chosen], [(texts[i], "") for i in chosen]
    if calibration.guard is not None:
        texts_by_id = {i: text for i, (text, _) in zip(ids, pairs, strict=True)}
        task = task_of(calibration.guard)
        check_text_leakage(texts_by_id, _held_out(calibration.guard), lambda row: task.question(row.row))
    return CalibrationText(ids, pairs, _report(calibration, ids, pairs))


def _check_enough(calibration: Calibration, count: int, where: str) -> None:
    if count < calibration.samples:
        raise DataError(
            f"{where} has {count} samples to calibrate on, and {calibration.samples} are asked for",
            expected="as many as are asked for, or more: a base is named by that number",
            hint=f"ask for fewer (--samples {count}, or quantize.samples in a study)" if count else "give some text",
        )


def undrawn_texts(calibration: Calibration) -> list[str]:
    """List the documents of a calibration file that were not drawn, in shuffled order; copies of drawn ones are left out.

    Raises:
        DataError: as `calibration_text`.
    """
    texts, order = _shuffled(calibration)
    drawn = {normalized(texts[i]) for i in order[: calibration.samples]}
    return [texts[i] for i in order[calibration.samples :] if normalized(texts[i]) not in drawn]


def _shuffled(calibration: Calibration) -> tuple[list[str], list[int]]:
    """Return the documents of a calibration file, and the order in which they are drawn."""
    path = Path(calibration.path or "")
    if not path.is_file() or file_sha256(path) != calibration.file_sha256:
        raise DataError(f"{path} is gone or changed since the command was planned", hint="run the command again")
    texts = read_texts(path)
    order = list(range(len(texts)))
    random.Random(calibration.seed).shuffle(order)
    return texts, order


def has_split(spec: TaskSpec, split: str) -> bool:
    """Tell whether the data of the task has this split."""
    return split in task_of(spec).splits(_task_data(spec))


def _held_out(spec: TaskSpec) -> dict[str, Sequence[Example]]:
    """Load the validation and test rows, as far as the data has these splits."""
    return {split: load_split(spec, split).examples for split in ("validation", "test") if has_split(spec, split)}


def _report(calibration: Calibration, ids: list[str], pairs: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "source": f"task:{calibration.task.name}" if calibration.task else Path(calibration.path or "").name,
        "samples": len(ids),
        "asked": calibration.samples,
        "seed": calibration.seed,
        "ids": ids,
        "sha256": fingerprint([list(pair) for pair in pairs]),
    }


def read_texts(path: Path) -> list[str]:
    """Read the documents of a file: JSON lines with a `text` field, or plain text with blank lines between documents.

    A plain text without any blank line holds one document a line.

    Raises:
        DataError: a line that is no such object, or a file without text.
    """
    texts = _texts(path)
    if not texts:
        raise DataError(
            f"{path} holds no text",
            expected='JSON lines with a "text" field, or a text file with blank lines between documents',
        )
    return texts


def _texts(path: Path) -> list[str]:
    if path.suffix not in (".jsonl", ".json"):
        text = read_text(path).replace("\r\n", "\n").strip("\n")
        return [block.strip() for block in text.split("\n\n" if "\n\n" in text else "\n") if block.strip()]
    texts: list[str] = []
    for row, where in json_lines(path):
        if not isinstance(row, dict) or "text" not in row:
            raise DataError(f"{where}: no JSON object with a text field", expected='{"text": "..."}')
        text = cast("dict[str, object]", row)["text"]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: the text is empty", expected="some text")
        texts.append(text)
    return texts


def _data_sha256(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise DataError(f"there is no data at {path}", expected="a folder with train.jsonl and test.jsonl, or one file")
    return fingerprint(
        {p.name: file_sha256(p) for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()}
    )


def _hub_commit(task: str, hub: HubData, *, offline: bool) -> str:
    """Find the commit of a data set on the hub; offline, one whose files are all in the cache."""
    if is_offline(offline):
        source = HubSource(task, hub, None)
        try:
            source.fetch(offline=True)
        except UsageError as error:
            kind = HubDataUnreachable if isinstance(error, HubUnreachable) else DataError
            raise kind(error.message, expected=error.expected, hint=error.hint) from error
        return str(source.revision)
    return str(hub.revision) if is_sha(hub.revision) else _head(task, hub.id, hub.revision)


@lru_cache(maxsize=32)
def _head(task: str, dataset: str, revision: str | None) -> str:
    advice = hub_advice(task, HubData(dataset, revision=revision), offline=False)
    if cached_sha("dataset", dataset, revision) is not None:
        advice = f"use --offline, as it was fetched before; or {advice}"
    return commit_sha("dataset", dataset, revision, advice=advice)
