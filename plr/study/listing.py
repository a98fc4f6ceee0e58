"""The artifacts of a store as rows: which model, k, l, mode, method and task each is of, and its score.

A row is read from the manifest alone. Filters compare text, as a shell compares names of files; the order is by the date on
record, by size, by name or by score, and of a list that is cut the end is kept: the newest, the largest, the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypedDict, cast

from plr.core.artifact import SHORT, Artifact
from plr.core.fingerprint import JsonObject
from plr.core.specs import Evaluate, GivenBase, Quantize, Restore, Source, Step, Train, bits_word
from plr.errors import IntegrityError, UsageError
from plr.scoring.metric import Metric
from plr.study.cells import NO_ADAPTER, finite

__all__ = ["FIELDS", "SORTS", "ListOptions", "Listed", "Score", "arranged", "listed", "select"]

FIELDS = ("model", "k", "l", "mode", "task", "method")
"""The fields that can be filtered by."""
Sort = Literal["date", "score", "size", "name"]
SORTS: tuple[Sort, ...] = ("date", "score", "size", "name")


class ListOptions(TypedDict, total=False):
    """Options of `Lab.ls`: patterns as a shell has for names of files (`*`, `?`, `[ab]`), one or several of which one fits."""

    model: str | Sequence[str]
    k: str | int | Sequence[str | int]
    l: str | int | Sequence[str | int]  # noqa: E741
    mode: str | Sequence[str]
    task: str | Sequence[str]
    method: str | Sequence[str]


@dataclass(frozen=True)
class Score:
    """The primary metric of a result over `n` documents."""

    metric: Metric
    value: float | None
    stderr: float | None
    n: int

    @property
    def goodness(self) -> tuple[str, float]:
        """A key to sort by: scores of one metric beside each other, the best last."""
        return self.metric.name, float("-inf") if self.value is None else self.metric.sign * self.value


@dataclass(frozen=True)
class Listed:
    """A row of the list of artifacts; a field that an artifact has no part in is None."""

    artifact: Artifact
    model: str | None = None
    k: int | None = None
    """Bits of the base that was trained on (0: unknown), or of a base itself."""
    l: int | None = None  # noqa: E741
    """Bits of the base that is served."""
    mode: str | None = None
    method: str | None = None
    """Method of the adapter; of a base its quantizer; `none` for the score of a base alone."""
    task: str | None = None
    """Task that is scored, that was trained on, or whose rows calibrated."""
    seed: int | None = None
    score: Score | None = None

    @property
    def name(self) -> str:
        """Name of its folder, which every command takes for a REF."""
        return self.artifact.path.name

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.artifact.record.files.values())

    @property
    def date(self) -> str:
        """Date of the commit, as it is on record."""
        return str(self.artifact.record.provenance["date"])

    def text(self, field: str) -> str:
        """Write a field for people and filters; empty where there is none."""
        value = getattr(self, field)
        if value is None:
            return ""
        return bits_word(value) if field in ("k", "l") else str(value)

    @property
    def record(self) -> JsonObject:
        """The row as a JSON object, with the path, and the metrics that are no lists."""
        record, score = self.artifact.record, self.score
        metrics = record.metrics.get("metrics") if record.kind == "result" else None
        if not isinstance(metrics, dict):
            metrics = {name: value for name, value in record.metrics.items() if not isinstance(value, list)}
        return {
            "kind": record.kind,
            "name": self.name,
            "hash": record.fingerprint[:SHORT],
            "fingerprint": record.fingerprint,
            "path": str(self.artifact.path),
            "model": self.model,
            "k": self.k or None,
            "l": self.l,
            "mode": self.mode,
            "method": self.method,
            "task": self.task,
            "seed": self.seed,
            "score": score
            and {"metric": score.metric.name, "value": score.value, "stderr": score.stderr, "n": score.n},
            "metrics": metrics,
            "bytes": self.bytes,
            "seconds": record.seconds,
            "date": self.date,
        }


def listed(artifact: Artifact) -> Listed:
    """Read the row of an artifact; one whose step this version of plr does not know has its name, size and date alone.

    Raises:
        IntegrityError: no manifest that can be read.
    """
    record = artifact.record
    try:
        step = artifact.step
    except IntegrityError:
        return Listed(artifact)
    return Listed(artifact, **_facts(step), score=_score(record.metrics) if record.kind == "result" else None)


def _facts(step: Step) -> dict[str, Any]:
    match step:
        case Quantize():
            calibration = step.quantization.calibration
            task = calibration.task.name if calibration is not None and calibration.task is not None else None
            return {"model": step.model.title, "k": step.bits, "method": step.quantization.method, "task": task}
        case Train():
            return {
                "model": step.base.model.title,
                "k": step.trained_bits,
                "method": step.adapter.method,
                "task": step.task.name,
                "seed": step.train.seed,
            }
        case Restore():
            adapter = step.adapter
            return {
                "model": step.base.model.title,
                "k": adapter.trained_bits,
                "l": step.base.bits,
                "mode": step.form.name,
                "method": adapter.adapter.method,
                "task": None if adapter.task is None else adapter.task.name,
                "seed": adapter.train.seed if isinstance(adapter, Train) else None,
            }
        case Evaluate(target=Restore() as target):
            return _facts(target) | {"task": step.task.name}
        case Evaluate(target=Source() | Quantize() | GivenBase() as base):
            facts = {"model": base.model.title, "k": base.bits, "l": base.bits}
            return facts | {"method": NO_ADAPTER, "task": step.task.name}
        case _:
            return {}


def _score(metrics: Mapping[str, Any]) -> Score | None:
    """Read the primary metric of a result; None where it has none."""
    name = metrics.get("primary")
    found = metrics.get("metrics", {}).get(name) if isinstance(name, str) else None
    if not isinstance(found, dict):
        return None
    values = cast("dict[str, Any]", found)
    return Score(Metric.recorded(str(name), values), finite(values["value"]), values.get("stderr"), values["n"])


def select(rows: Iterable[Listed], **filters: object) -> list[Listed]:
    """Keep the rows of which each named field fits one of its patterns; a filter that is None, or empty, keeps all.

    A model fits by its whole name, or by the part after the last `/`.

    Raises:
        UsageError: a field that is none of `FIELDS`.
    """
    if unknown := filters.keys() - set(FIELDS):
        raise UsageError(f"artifacts have no {sorted(unknown)[0]!r}", expected="one of " + ", ".join(FIELDS))
    patterns = {field: _patterns(value) for field, value in filters.items() if value is not None}
    return [row for row in rows if all(_fits(row, field, wanted) for field, wanted in patterns.items() if wanted)]


def _patterns(value: object) -> list[str]:
    if isinstance(value, str | int):
        return [str(value)]
    return [str(one) for one in cast("Iterable[object]", value)]


def _fits(row: Listed, field: str, patterns: list[str]) -> bool:
    text = row.text(field)
    names = {text, text.rpartition("/")[2]} if field == "model" else {text}
    return bool(text) and any(name == one or fnmatchcase(name, one) for name in names for one in patterns)


def arranged(
    rows: Sequence[Listed], sort: str = "date", *, limit: int | None = None, reverse: bool = False
) -> list[Listed]:
    """Sort rows, the newest, best, largest, or last by name at the end; `limit` keeps that end, `reverse` turns it around.

    `rows` come in the order of `Store.all`, that of their dates. Rows without a score stand before all that have one.

    Raises:
        UsageError: an order that is none of `SORTS`, or a limit below 1.
    """
    if sort not in SORTS:
        raise UsageError(f"--sort is {sort!r}", expected="one of " + ", ".join(SORTS))
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}", expected="1 or more")
    ordered = list(rows)
    if sort == "score":
        ordered.sort(key=lambda row: (row.score is not None, row.score.goodness if row.score else ("", 0.0)))
    elif sort == "size":
        ordered.sort(key=lambda row: row.bytes)
    elif sort == "name":
        ordered.sort(key=lambda row: row.name)
    if limit is not None:
        ordered = ordered[-limit:]
    return ordered[::-1] if reverse else ordered
