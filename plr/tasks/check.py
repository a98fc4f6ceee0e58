"""Check of the data of a task, before anything is trained on it.

In this order; the first stage that finds an error ends the check, since the rows behind it cannot be made:

1. every row of the source has its fields, a target and a label that is known; all that do not are counted, the first named;
2. the splits can be cut and read;
3. no prompt stands in two splits (the error that makes scores worthless), none twice in one, none with two targets, none has a
   field's name in braces where its value should be;
4. targets are not empty; the gold answer, taken as a prediction, can be scored and is right: a target that runs on behind its own
   boundary is not;
5. labels, or the few answers there are: how they are spread, what a constant answer would score, which stand in no row of train;
6. prompt and target fit `max_length`, in tokens or characters as the caller counts them.

Equal rows between splits that were published as they are (`Task.official_splits`) are a remark, as everybody keeps them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from plr.errors import DataError
from plr.tasks.base import Task
from plr.tasks.classification import Classification
from plr.tasks.data.loading import row_problem, source_rows
from plr.tasks.data.splits import normalized
from plr.tasks.gold import judge_gold
from plr.tasks.types import Example, Split, TaskData

__all__ = ["Finding", "Report", "check_task"]

FEW_ANSWERS = 20
"""Up to so many different targets are labels, if each stands for ten rows on average."""
IMBALANCE = 10
"""The commonest label this many times as frequent as the rarest is a remark."""

Level = Literal["error", "remark", "fine"]
Lengths = Callable[[Example], tuple[int, int]]
"""The length of prompt and target of a row."""


class Finding(NamedTuple):
    level: Level
    about: str
    text: str


class Report(NamedTuple):
    findings: list[Finding]
    splits: dict[str, int]
    """Rows that are kept, by split."""
    labels: dict[str, dict[str, int]]
    """Label -> rows, by split; empty where answers are free."""
    longest: dict[str, int]
    """Longest prompt and target together, by split."""

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)


def check_task(
    task: Task,
    data: TaskData,
    *,
    max_length: int | None = None,
    lengths: Lengths | None = None,
    unit: str = "characters",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Look at every row of every split. Nothing of the data raises; what is wrong is a finding.

    `on_progress` is told how many of how many gold answers are scored.
    """
    report = Report([], {}, {}, {})
    _rows(task, data, report)
    if report.errors:
        return report
    splits = _splits(task, data, report)
    if not splits:
        return report
    _leakage(task, splits, report)
    _unfilled(splits, report)
    _gold(task, splits, report, on_progress)
    _labels(splits, report)
    _head(task, data, splits, report)
    _length(splits, report, max_length, lengths or (lambda row: (len(row.prompt), len(row.target))), unit)
    return report


def _rows(task: Task, data: TaskData, report: Report) -> None:
    try:
        source = source_rows(task, data)
    except DataError as error:
        report.findings.append(Finding("error", "rows", str(error)))
        return
    total = 0
    for split, rows in source.items():
        total += len(rows)
        problems = [(row.where, problem[0]) for row in rows if (problem := row_problem(task, row))]
        if problems:
            text = f"{len(problems)} of {len(rows)} rows of {split} cannot be used: " + _some(
                [": ".join(one) for one in problems], 2
            )
            report.findings.append(Finding("error", "rows", text))
    if not report.errors:
        report.findings.append(Finding("fine", "rows", f"{total} rows have all their fields"))


def _splits(task: Task, data: TaskData, report: Report) -> dict[str, Split]:
    loaded: dict[str, Split] = {}
    for name in task.splits(data):
        try:
            loaded[name] = task.load(name, data)
        except DataError as error:
            report.findings.append(Finding("error", "splits", f"{name}: {error}"))
            continue
        counts = loaded[name].report
        report.splits[name] = counts.kept
        if counts.cut:
            report.findings.append(Finding("fine", "splits", f"{name}: {counts.cut}"))
        if counts.duplicates or counts.too_long:
            text = (
                f"{name}: {counts.duplicates} duplicates and {counts.too_long} rows with too long a prompt are dropped"
            )
            report.findings.append(Finding("remark", "splits", text))
    for name in ("train", "validation", "test"):
        if name not in task.splits(data):
            report.findings.append(Finding("remark", "splits", f"there is no {name} split"))
    return loaded


def _leakage(task: Task, splits: Mapping[str, Split], report: Report) -> None:
    seen: dict[str, tuple[str, Example]] = {}
    between: dict[tuple[str, str], list[str]] = {}
    within: Counter[str] = Counter()
    other: list[str] = []
    for name, split in splits.items():
        for row in split.examples:
            first = seen.setdefault(normalized(row.prompt), (name, row))
            if first[1] is row:
                continue
            if first[0] == name:
                within[name] += 1
            else:
                between.setdefault((first[0], name), []).append(f"{first[1].id} = {row.id}")
            if first[1].target.strip() != row.target.strip():
                other.append(f"{first[1].id} and {row.id}")
    for (one, two), pairs in between.items():
        level: Level = "remark" if task.official_splits else "error"
        text = f"{len(pairs)} rows of {two} have a prompt that stands in {one}: {_some(pairs)}"
        report.findings.append(Finding(level, "leakage", text))
    if not between:
        report.findings.append(Finding("fine", "leakage", "no prompt stands in two splits"))
    for name, count in within.items():
        report.findings.append(
            Finding("remark", "leakage", f"{count} rows of {name} repeat a prompt of the same split")
        )
    if other:
        text = f"{len(other)} rows have the prompt of another row and another target: {_some(other)}"
        report.findings.append(Finding("remark", "targets", text))


def _unfilled(splits: Mapping[str, Split], report: Report) -> None:
    """Note doubled braces: `{{name}}`, a field in other template languages, is here the text `{name}` in every row."""
    rows = [row for split in splits.values() for row in split.examples]
    for name in rows[0].row:
        if all(f"{{{name}}}" in f"{row.prompt}{row.target}".replace("{ ", "{").replace(" }", "}") for row in rows):
            text = f"every row holds {{{name}}} as text: a field stands in single braces"
            report.findings.append(Finding("remark", "prompt", text))


def _gold(task: Task, splits: Mapping[str, Split], report: Report, on_progress: Callable[[int, int], None]) -> None:
    """Note rows whose gold answer the scorer calls wrong, or cannot score: they cannot be answered."""
    rows = [row for split in splits.values() for row in split.examples]
    empty = [row.id for row in rows if not row.target.strip()]
    full = [row for row in rows if row.target.strip()]
    total, wrong, unscored, cut = judge_gold(task, full, on_progress)
    if empty:
        report.findings.append(Finding("error", "targets", f"{len(empty)} targets are empty: {_some(empty)}"))
    if unscored:
        level: Level = "error" if len(unscored) == total else "remark"
        text = f"{len(unscored)} of {total} gold answers cannot be scored by {task.primary}: {_some(unscored)}"
        report.findings.append(Finding(level, "targets", text))
    if wrong:
        text = f"{len(wrong)} of {total} gold answers are not right by {task.primary}: {_some(wrong)}"
        behind = f"; {cut} of them go on behind the place where an answer ends (boundary, stop)" if cut else ""
        report.findings.append(Finding("error", "targets", text + behind))
    elif total > len(unscored):
        text = f"all {total - len(unscored)} gold answers that can be scored are right by {task.primary}"
        report.findings.append(Finding("fine", "targets", text))


def _labels(splits: Mapping[str, Split], report: Report) -> None:
    counts = {name: Counter(row.target.strip() for row in split.examples) for name, split in splits.items()}
    everything = sum(counts.values(), Counter[str]())
    if len(everything) > FEW_ANSWERS or everything.total() < 10 * len(everything):
        return
    report.labels.update({name: dict(count.most_common()) for name, count in counts.items()})
    for name, count in counts.items():
        (label, most), total = count.most_common(1)[0], count.total()
        rarest = min(count.get(one, 0) for one in everything)
        skewed = len(everything) > 1 and most > IMBALANCE * rarest
        text = f"{name}: {len(count)} of {len(everything)} labels; always answering {label!r} scores {100 * most / total:.1f} %"
        report.findings.append(Finding("remark" if skewed else "fine", "labels", text))
    if len(everything) == 1:
        report.findings.append(Finding("error", "labels", f"every row has the label {next(iter(everything))!r}"))
    for name, count in counts.items():
        if "train" in counts and (unknown := sorted(set(count) - set(counts["train"]))):
            text = f"{name}: no row of train has the label {', '.join(map(repr, unknown))}"
            report.findings.append(Finding("error", "labels", text))


def _head(task: Task, data: TaskData, splits: Mapping[str, Split], report: Report) -> None:
    """Check that the labels of the data make a head, one that the metrics can measure and that knows every label."""
    told = any(finding.about == "labels" and finding.level == "error" for finding in report.findings)
    if told or not isinstance(task, Classification):
        return
    try:
        names = task.head(data).names
    except DataError as error:
        report.findings.append(Finding("error", "labels", str(error)))
        return
    for name, split in splits.items() if names else ():
        if unknown := [f"{row.id} ({_line(row.target)})" for row in split.examples if row.target not in names]:
            text = f"{len(unknown)} rows of {name} have a label that no row of train has: {_some(unknown)}"
            report.findings.append(Finding("error", "labels", text))


def _length(splits: Mapping[str, Split], report: Report, max_length: int | None, lengths: Lengths, unit: str) -> None:
    for name, split in splits.items():
        sizes = [(sum(lengths(row)), row.id) for row in split.examples]
        report.longest[name] = max(size for size, _ in sizes)
        if max_length is None:
            continue
        over = [f"{row} ({size})" for size, row in sizes if size > max_length]
        if over:
            text = f"{len(over)} of {len(sizes)} rows of {name} have more than {max_length} {unit}: {_some(over)}"
            report.findings.append(Finding("error", "length", text))
        else:
            text = f"{name}: the longest row has {report.longest[name]} of {max_length} {unit}"
            report.findings.append(Finding("fine", "length", text))


def _some(items: Sequence[str], named: int = 5) -> str:
    """Name the first few, and how many more there are."""
    rest = f" and {len(items) - named} more" if len(items) > named else ""
    return ", ".join(items[:named]) + rest


def _line(text: str) -> str:
    return " ".join(text.split())[:100]
