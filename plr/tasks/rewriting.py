"""A task rewritten into a folder of its own: rows by `plr.tasks.transforms`, and the task file that scores them.

Where answers stay as they are, the new task scores them as the old one does (`scorer: NAME` in its file); where they do not, by
metrics that a task file can name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from plr.core.config import load_yaml
from plr.core.text import without_nan
from plr.errors import UsageError
from plr.scoring.by_name import METRICS
from plr.tasks import Example, Task, transforms
from plr.tasks.data.rows import draw
from plr.tasks.file.from_file import FileGeneration, FileScored
from plr.tasks.file.schema import TaskFile
from plr.tasks.file.template import Template
from plr.tasks.library import instruct
from plr.tasks.types import Fields

__all__ = ["How", "Rewrite", "Rewritten", "read_wordings", "rewrite_task", "rewriter", "write_task"]

How = Literal["chat", "templates", "in-context", "symbols"]
Splits = Mapping[str, Sequence[Example]]
Rewrite = Callable[[Sequence[Example]], list[dict[str, str]]]
"""Examples to rows of prompt, target and source."""

OURS = {"prompt", "target", "source"}
"""The fields that a rewritten row has; those of the row behind stand beside them, and give way."""


class ScoringKeys(TypedDict, total=False):
    """The keys of a task file that say how answers are scored: `scorer` alone, or `metric` and what it reads."""

    scorer: str
    metric: list[str]
    boundary: str
    target: str | None
    choices: list[str]
    label: str | None


@dataclass(frozen=True)
class Rewritten:
    """Rows by split, the keys of the task file, and which of them say how answers are scored."""

    rows: Mapping[str, Sequence[Fields]]
    settings: Mapping[str, object]
    scoring: ScoringKeys


def rewriter(
    how: How,
    task: Task,
    train: Sequence[Example],
    *,
    tokenizer: transforms.ChatTokenizer | None = None,
    wordings: Sequence[tuple[str, str]] = (),
    every: bool = False,
    shots: int = 4,
    seed: int = 0,
) -> Rewrite:
    """Build what rewrites the rows of a split.

    Args:
        train: where solved rows come from (in-context, symbols).
        tokenizer: whose chat template is written (chat).
        wordings, every: pairs of prompt and target, one for each row or all of them (templates); see `read_wordings`.

    Raises:
        UsageError: solved rows are wanted, and there is no train split.
    """
    if how == "chat":
        assert tokenizer is not None
        talk = {} if task in (instruct.ALPACA, instruct.CHAT) else {"messages": transforms.one_turn}
        return lambda rows: list(transforms.as_chat(rows, tokenizer, **talk))
    if how == "templates":
        return lambda rows: list(transforms.with_templates(rows, wordings, seed=seed, every=every))
    if not train:
        raise UsageError(
            f"--as {how} takes its solved rows from train, and there is no train split",
            hint="--data FOLDER with train.jsonl beside the rows that are asked",
        )
    put_before = transforms.in_context if how == "in-context" else transforms.with_symbols
    return lambda rows: list(put_before(rows, train, shots=shots, seed=seed))


def rewrite_task(
    name: str, how: How, task: Task, splits: Splits, rewrite: Rewrite, *, limit: int | None = None, seed: int = 0
) -> Rewritten:
    """Rewrite the rows of every split (at most `limit` of each, drawn by `seed`) and choose how the new task scores them."""
    rows: dict[str, Sequence[Fields]] = {split: rewrite(draw(of, limit, seed)) for split, of in splits.items()}
    scoring = _scoring(how, task, splits, rows)
    if {"scorer", "choices"} & scoring.keys():  # these read fields of the rows
        before = {row.id: row.row for of in splits.values() for row in of}
        rows = {split: [{**row, **before[row["source"]], **row} for row in of] for split, of in rows.items()}
    settings: dict[str, object] = {
        "name": f"{name}_{how.replace('-', '_')}",
        "data": ".",
        "prompt": "{prompt}",
        "target": "{target}",
        **scoring,
        "max_new_tokens": 16 if how == "symbols" else task.max_new_tokens,
    }
    if how in ("in-context", "symbols"):  # behind its answer a base would write another row
        between = transforms.BETWEEN
        blank = any(between in row["target"] for of in rows.values() for row in of)
        settings["stop"] = list(dict.fromkeys([*([] if blank else [between]), *task.stop]))
    return Rewritten(rows, settings, scoring)


def write_task(rewritten: Rewritten, folder: Path) -> Path:
    """Write a JSONL file for each split, and `task.yaml`, whose path is returned."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in rewritten.rows.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False, default=str) + "\n" for row in rows
            )
    file = folder / "task.yaml"
    text = yaml.safe_dump(dict(rewritten.settings), sort_keys=False, allow_unicode=True)
    file.write_text(text, encoding="utf-8")
    return file


def read_wordings(file: Path) -> list[tuple[str, str]]:
    """Read the wordings of a YAML file: `templates`, a list of `{prompt, target}`.

    Raises:
        UsageError: there is no such list, or one of its entries is no prompt and target.
    """
    listed = load_yaml(file).get("templates")
    form = 'templates:\n  - {prompt: "{question}", target: " {answer}"}'
    if not isinstance(listed, list):
        raise UsageError(f"{file} has no list of templates", expected=form)
    for one in listed:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("prompt", "target")):
            raise UsageError(f"{file}: {one!r} is no prompt and target", expected=form)
    return [(one["prompt"], one["target"]) for one in listed]


def _scoring(how: How, task: Task, splits: Splits, rewritten: Mapping[str, Sequence[Mapping[str, str]]]) -> ScoringKeys:
    """Return the keys of a task file that score as `task` does, where the rows kept its answers as they are."""
    scorer = task.scorer if isinstance(task, FileScored) else task
    written = {row.id: row.target.strip() for rows in splits.values() for row in rows}
    rows = [row for part in rewritten.values() for row in part]
    if task.kind == "generation" and all(row["target"].strip() == written[row["source"]] for row in rows):
        if isinstance(scorer, FileGeneration):
            return _scoring_of(scorer.file)
        if not OURS & set(scorer.fields):
            return {"scorer": scorer.name}
    names = [] if how == "symbols" else _named(task)
    if how == "chat" or any("\n" in row["target"].strip() for row in rows):  # a whole text rarely equals another
        free = [name for name in names if name != "exact_match"]
        return {"metric": list(dict.fromkeys([*free, "rougeL"])), "boundary": "text"}
    return {"metric": names or ["exact_match"], "boundary": "line"}


def _scoring_of(file: TaskFile) -> ScoringKeys:
    scoring: ScoringKeys = {"metric": list(file.metric) or ["exact_match"], "boundary": file.boundary}
    read = {name for text in (file.target or "", *file.choices) for name in Template.parse(text).fields}
    if file.choices and not OURS & {*read, file.label}:
        scoring |= {"target": file.target, "choices": list(file.choices), "label": file.label}
    return scoring


def _named(task: Task) -> list[str]:
    """Return the metrics of `task` that a task file can name."""
    names = dict.fromkeys(metric.partition(",")[0] for metric in task.metrics)
    return [name for name in names if name in METRICS]
