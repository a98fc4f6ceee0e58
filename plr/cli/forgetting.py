"""The command forgetting: perplexity and scores of other tasks before and after an adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Device, Json, Offline, lab
from plr.cli.root import app
from plr.core.fingerprint import JsonObject
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.core.specs import Evaluate, Restore
    from plr.evaluation.forgetting import Change
    from plr.lab import Lab

__all__: list[str] = []

HEAD = ("measured on", "metric", "base alone", "with the adapter", "change", "95 % interval", "n")


@app.command()
def forgetting(
    ref: Annotated[
        str | None, typer.Argument(help="Adapter: path, name or hash prefix; the latest if left out.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="General text (.jsonl with a text field, or plain): its perplexity.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Another task, NAME or NAME=FOLDER with its data; may be repeated."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", "-b", help="Serve on this base; the adapter's own if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="About how many tokens of the text are read.")] = 8192,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score only this many rows of a task, drawn by seed.")
    ] = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure what an adapter makes its base forget: perplexity of general text and scores of other tasks, before and after.

    Example: [bold]plr forgetting 3fa9c1 --text wiki.txt --task tiny_sql --limit 50[/bold]
    """
    from plr.cli.show import emit
    from plr.evaluation.forgetting import check_writes
    from plr.lab import check_bits

    if bits is not None:
        check_bits(bits)
    here = lab(device, offline)
    trained = here.trained(ref)
    step = here.restored(trained, trained.base.bits if bits is None else bits)
    wanted = task or ([] if text else _embedded(step))
    if text is None and not wanted:
        raise UsageError(
            "there is nothing to measure", expected="--text FILE, --task NAME or both", hint="plr forgetting --help"
        )
    check_writes(step)
    rows = _tasks(here, step, wanted, limit, as_json)
    if text is not None:
        rows.insert(0, _text(here, step, text, tokens, as_json))
    if as_json:
        emit(
            {
                "adapter": step.adapter.label,
                "train_bits": step.adapter.trained_bits or None,
                "restore_bits": step.base.bits,
                "rows": [_plain(row) for row in rows],
            }
        )
    else:
        _print(step, rows)


def _embedded(step: Restore) -> list[str]:
    """List the other tasks of the embedded base, which need no data."""
    if step.base.model.kind != "embedded":
        return []
    own = None if step.adapter.task is None else step.adapter.task.name
    return [name for name in ("tiny_math", "tiny_sql") if name != own]


def _tasks(here: Lab, step: Restore, wanted: list[str], limit: int | None, quiet: bool) -> list[Change]:
    """Score each task on the base alone and with the adapter; results in the store are used again."""
    from plr.cli.show import watch
    from plr.engines.plan import Plan
    from plr.evaluation.forgetting import task_changes

    steps: list[Evaluate] = []
    for text in wanted:
        name, equals, data = (text, "", "") if Path(text).is_file() else text.partition("=")
        rows = data if equals else None
        steps += [here.result(target, name, data=rows, limit=limit) for target in (step.base, step)]
    if not steps:
        return []
    with watch(Plan.of(steps, here.store).missing, quiet=quiet) as watcher:
        results = here.make_all(steps, on_event=watcher)
    return [
        row for before, after in zip(results[::2], results[1::2], strict=True) for row in task_changes(before, after)
    ]


def _text(here: Lab, step: Restore, file: Path, tokens: int, quiet: bool) -> Change:
    from plr.cli.show import console
    from plr.core.quiet import quiet_libraries
    from plr.evaluation.forgetting import text_shift
    from plr.tasks.data.rows import read_texts

    if not file.is_file():
        raise UsageError(f"there is no text {file}", expected="a .jsonl or text file")
    texts = read_texts(file)
    if step.base.bits < 16:
        here.make(step.base)
    quiet_libraries()
    if not quiet:
        console(stderr=True).print(f"reading {file.name} without and with the adapter", highlight=False)
    shift = text_shift(step, texts, here.store, here.runtime(here.recipe_for(step).runtime), tokens=tokens)
    return shift.change(file.name)


def _plain(row: Change) -> JsonObject:
    fields = asdict(row) | {"metric": row.metric.name, **row.metric.record}
    return {key: value for key, value in fields.items() if key != "tokens" or value is not None}


def _print(step: Restore, rows: list[Change]) -> None:
    from rich.table import Table

    from plr.cli.show import console
    from plr.scoring.metric import ANSWER_LOSS

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(HEAD):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for row in rows:
        change = ANSWER_LOSS if row.metric.name == "perplexity" else row.metric  # its change is one of the loss
        values = [row.metric.show(value) for value in (row.before, row.after)]
        ends = "-" if row.low is None else f"{change.show_signed(row.low)} to {change.show_signed(row.high)}"
        table.add_row(row.what, row.metric.name, *values, change.show_signed(row.change), ends, str(row.n))
    out = console()
    out.print(f"[bold]forgetting[/bold] {step.adapter.label} on {step.base.bits} bits", highlight=False)
    out.print(table)
    out.print(
        "change: points, or of a loss (also that of a perplexity) nats a token, or the unit of the metric; "
        "n: documents, or chunks of text",
        highlight=False,
    )
