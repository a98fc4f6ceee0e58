"""tasks transform: the rows of a task, rewritten into a task of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plr.cli.options import Data, Json, Offline
from plr.cli.tasks import Name, SplitSeed, tasks_app
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.tasks import Example, Task
    from plr.tasks.file.schema import TaskFile

__all__: list[str] = []

How = Literal["chat", "templates", "in-context", "symbols"]
OURS = {"prompt", "target", "source"}
"""The fields that a rewritten row has; those of the row behind stand beside them, and give way."""


@tasks_app.command()
def transform(
    name: Name,
    how: Annotated[How, typer.Option("--as", help="What the rows become.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder: train, validation, test and task.yaml.")
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", help="chat: whose chat template.")] = None,
    templates: Annotated[
        Path | None, typer.Option(help="templates: a YAML file, templates: a list of {prompt, target}.")
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="templates: each row in all wordings.")] = False,
    shots: Annotated[int, typer.Option(min=1, help="Solved rows before each row; symbols: of each label.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of wordings, solved rows and symbols.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many rows of a split, drawn by seed.")] = None,
    data: Data = None,
    split_seed: SplitSeed = 0,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Rewrite a task for instruction tuning: chat template, several wordings (FLAN), in-context tuning, symbol tuning.

    Where answers stay as they are, the new task scores them as the old one does (scorer: NAME in its file).

    Example: [bold]plr tasks transform tiny_math --as in-context --shots 2 -o shots[/bold]
    """
    from plr.cli.show import console, emit
    from plr.tasks import task_of
    from plr.tasks.data.rows import draw, guarded_train, has_split, load_split, resolve_task
    from plr.tasks.transforms import BETWEEN, worded

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"{output} exists and is not an empty folder", hint="choose another --output: nothing is overwritten"
        )
    spec = resolve_task(name, data=data, split_seed=split_seed, offline=offline)
    splits = {one: load_split(spec, one).examples for one in ("train", "validation", "test") if has_split(spec, one)}
    if "train" in splits:
        guarded_train(spec)  # behind other words a row that stands in two splits would not be found again
    task = task_of(spec)
    if task.kind == "classification":
        splits = {split: worded(rows) for split, rows in splits.items()}
    rewrite = _rewriter(how, task, splits.get("train", ()), model, templates, every, shots, seed, offline)
    made = {split: rewrite(draw(rows, limit, seed)) for split, rows in splits.items()}
    scoring = _scoring(how, task, splits, made)
    if {"scorer", "choices"} & scoring.keys():  # these read fields of the rows
        before = {row.id: row.row for rows in splits.values() for row in rows}
        made = {split: [{**row, **before[row["source"]], **row} for row in rows] for split, rows in made.items()}
    output.mkdir(parents=True, exist_ok=True)
    for split, rows in made.items():
        with (output / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    settings = {
        "name": f"{spec.name}_{how.replace('-', '_')}",
        "data": ".",
        "prompt": "{prompt}",
        "target": "{target}",
        **scoring,
        "max_new_tokens": 16 if how == "symbols" else task.max_new_tokens,
    }
    if how in ("in-context", "symbols"):  # behind its answer a base would write another row
        blank = any(BETWEEN in row["target"] for rows in made.values() for row in rows)
        settings["stop"] = list(dict.fromkeys([*([] if blank else [BETWEEN]), *task.stop]))
    _write_task(output / "task.yaml", settings)
    counts = {split: len(rows) for split, rows in made.items()}
    if as_json:
        emit({"task": str(output / "task.yaml"), "rows": counts, **settings})
        return
    out = console()
    out.print(", ".join(f"{split} {count}" for split, count in counts.items()), highlight=False)
    by = f"as {scoring['scorer']} scores" if "scorer" in scoring else ", ".join(scoring["metric"])
    out.print(f"[bold]scored[/bold] {by}", highlight=False)
    out.print(f"[bold]task[/bold] {output / 'task.yaml'}", highlight=False)


def _scoring(
    how: How, task: Task, splits: Mapping[str, Sequence[Example]], made: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, Any]:
    """The keys of a task file by which answers are scored: as ``task`` scores them, where the rows kept its answers as they are."""
    from plr.tasks.file.from_file import FileGeneration, FileScored

    scorer = task.scorer if isinstance(task, FileScored) else task
    written = {row.id: row.target.strip() for rows in splits.values() for row in rows}
    rows = [row for part in made.values() for row in part]
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


def _scoring_of(file: TaskFile) -> dict[str, Any]:
    from plr.tasks.file.template import Template

    scoring = {"metric": list(file.metric) or ["exact_match"], "boundary": file.boundary}
    read = {name for text in (file.target or "", *file.choices) for name in Template.parse(text).fields}
    if file.choices and not OURS & {*read, file.label}:
        scoring |= {"target": file.target, "choices": list(file.choices), "label": file.label}
    return scoring


def _named(task: Task) -> list[str]:
    """The metrics of ``task`` that a task file can name."""
    from plr.scoring.by_name import METRICS

    names = dict.fromkeys(metric.partition(",")[0] for metric in task.metrics)
    return [name for name in names if name in METRICS]


def _rewriter(
    how: How,
    task: Task,
    train: Any,
    model: str | None,
    templates: Path | None,
    every: bool,
    shots: int,
    seed: int,
    offline: bool,
) -> Any:
    from plr.tasks import transforms
    from plr.tasks.library import instruct

    if how == "chat":
        if model is None:
            raise UsageError("a chat template is that of a model", expected="--model M")
        from plr.bases.load import load_tokenizer
        from plr.bases.resolve import resolve_model
        from plr.core.quiet import quiet_libraries

        quiet_libraries()
        tokenizer = load_tokenizer(resolve_model(model, offline=offline), offline=offline)
        chats = (instruct.ALPACA, instruct.CHAT)
        talk = {} if task in chats else {"messages": transforms.one_turn}
        return lambda rows: list(transforms.as_chat(rows, tokenizer, **talk))
    if how == "templates":
        wordings = _wordings(templates)
        return lambda rows: list(transforms.with_templates(rows, wordings, seed=seed, every=every))
    if not train:
        raise UsageError(
            f"--as {how} takes its solved rows from train, and there is no train split",
            hint="--data FOLDER with train.jsonl beside the rows that are asked",
        )

    def rewrite(rows: list[Example]) -> list[dict[str, str]]:
        made = transforms.in_context if how == "in-context" else transforms.with_symbols
        return list(made(rows, train, shots=shots, seed=seed))

    return rewrite


def _wordings(file: Path | None) -> list[tuple[str, str]]:
    from plr.core.config import load_yaml

    if file is None:
        raise UsageError("--as templates needs the wordings", expected="--templates FILE.yaml")
    listed = load_yaml(file).get("templates")
    form = 'templates:\n  - {prompt: "{question}", target: " {answer}"}'
    if not isinstance(listed, list):
        raise UsageError(f"{file} has no list of templates", expected=form)
    for one in listed:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("prompt", "target")):
            raise UsageError(f"{file}: {one!r} is no prompt and target", expected=form)
    return [(one["prompt"], one["target"]) for one in listed]


def _write_task(path: Path, settings: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
