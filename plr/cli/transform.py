"""tasks transform: the rows of a task, rewritten into a task of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plr.cli.options import Columns, Data, Json, Offline, columns_of, store_to_read
from plr.cli.tasks import Name, SplitSeed, tasks_app
from plr.errors import UsageError

__all__: list[str] = []

How = Literal["chat", "templates", "in-context", "symbols"]


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
    columns: Columns = None,
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
    from plr.tasks.data.rows import guarded_train, has_split, load_split, resolve_task
    from plr.tasks.rewriting import read_wordings, rewrite_task, rewriter, write_task
    from plr.tasks.transforms import worded

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"{output} exists and is not an empty folder", hint="choose another --output: nothing is overwritten"
        )
    spec = resolve_task(name, data=data, columns=columns_of(columns), split_seed=split_seed, offline=offline)
    splits = {one: load_split(spec, one).examples for one in ("train", "validation", "test") if has_split(spec, one)}
    if "train" in splits:
        guarded_train(spec)  # behind other words a row that stands in two splits would not be found again
    task = task_of(spec)
    if task.kind == "classification":
        splits = {split: worded(rows) for split, rows in splits.items()}
    if how == "templates" and templates is None:
        raise UsageError("--as templates needs the wordings", expected="--templates FILE.yaml")
    rewrite = rewriter(
        how,
        task,
        splits.get("train", ()),
        tokenizer=_tokenizer(model, offline) if how == "chat" else None,
        wordings=read_wordings(templates) if how == "templates" and templates is not None else (),
        every=every,
        shots=shots,
        seed=seed,
    )
    rewritten = rewrite_task(spec.name, how, task, splits, rewrite, limit=limit, seed=seed)
    file = write_task(rewritten, output)
    counts = {split: len(rows) for split, rows in rewritten.rows.items()}
    if as_json:
        emit({"task": str(file), "rows": counts, **rewritten.settings})
        return
    scoring = rewritten.scoring
    out = console()
    out.print(", ".join(f"{split} {count}" for split, count in counts.items()), highlight=False)
    by = f"as {scoring['scorer']} scores" if "scorer" in scoring else ", ".join(scoring.get("metric", ()))
    out.print(f"[bold]scored[/bold] {by}", highlight=False)
    out.print(f"[bold]task[/bold] {file}", highlight=False)


def _tokenizer(model: str | None, offline: bool) -> Any:
    if model is None:
        raise UsageError("a chat template is that of a model", expected="--model M")
    from plr.bases.load import load_tokenizer
    from plr.bases.resolve import resolve_model
    from plr.core.quiet import quiet_libraries

    quiet_libraries()
    return load_tokenizer(resolve_model(model, offline=offline), offline=offline, home=store_to_read())
