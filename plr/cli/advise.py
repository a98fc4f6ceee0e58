"""The command advise: which base an adapter belongs on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plr.cli.options import Columns, Data, Device, Json, Offline, Source, TrainedOn, columns_of, lab
from plr.cli.root import app
from plr.core.modes import asked_modes, plain_modes
from plr.errors import CellsFailedError, UsageError

if TYPE_CHECKING:
    from plr.lab import AdviseOptions
    from plr.report.advice import Advice

__all__: list[str] = []

OWN_INTERVAL = 5
"""The column that the terminal leaves out; files have it."""


@app.command()
def advise(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="Path, name or hash prefix, the latest if left out; or a PEFT folder, or ORG/NAME of the hub."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task to be scored by; the adapter's own if left out.")
    ] = None,
    bits: Annotated[
        str, typer.Option("--bits", "-b", help="Widths to serve on, beside that of its own base.")
    ] = "16,8,4",
    modes: Annotated[
        str, typer.Option("--modes", help=f"Modes beside keep: of {', '.join(asked_modes())}.")
    ] = "restore,requantize,auto",
    rows: Annotated[int, typer.Option(min=1, help="Test rows that certify the choice.")] = 400,
    select_rows: Annotated[int, typer.Option(min=1, help="Further test rows that choose.")] = 200,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The base, where not the one that the adapter names; another place of it."),
    ] = None,
    source: Source = None,
    trained_on: TrainedOn = None,
    method: Annotated[
        str | None, typer.Option(help="How the l-bit bases are quantized; as the adapter's own if left out.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="A JSONL or text file that calibrates them; rows of the task if left out.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the computation, and part of what a result is; auto: bfloat16 where the device has it."),
    ] = "auto",
    data: Data = None,
    columns: Columns = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Attach although the provenance does not agree.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the candidates; run nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report (default: runs/advise-ADAPTER).")
    ] = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Find the base that an adapter belongs on: score it on its own base and on others, choose, and prove the choice on other rows.

    Example: [bold]plr advise my-adapter --trained-on nf4 --task sql_create_context --data sql[/bold]
    """
    from plr.cli.show import emit, print_files, watch
    from plr.report.advice import advice_json
    from plr.report.write import write_advice

    here = lab(device, offline, dtype=dtype)
    options: AdviseOptions = {
        "data": data,
        "columns": columns_of(columns),
        "bits": [_width(part) for part in bits.split(",")],
        "modes": [part.strip() for part in modes.split(",")],
        "rows": rows,
        "select_rows": select_rows,
        "model": model,
        "source": source,
        "trained_on": trained_on,
        "method": method,
        "calibration": calibration,
        "max_new_tokens": max_new_tokens,
        "allow_mismatch": allow_mismatch,
    }
    asked = here.inquiry(adapter, task, **options)
    plan = asked.plan(here.store)
    if dry_run:
        labels = [f"{cell.label}, {cell.mode}" for cell in asked.cells]
        found = {"candidates": labels, "steps": {"missing": len(plan.missing), "cached": len(plan.cached)}}
        if as_json:
            emit(found | {"rows": {"choosing": len(asked.rows.choosing), "certifying": len(asked.rows.certifying)}})
        else:
            print("\n".join(labels))
            print(f"{len(plan.missing)} steps to make, {len(plan.cached)} found in {here.store.home}")
        return
    with watch(list(plan.missing), quiet=as_json) as watcher:
        advice = here.advise(asked, on_event=watcher)
    files = write_advice(advice, here.store, output or Path("runs") / f"advise-{asked.name}")
    if as_json:
        emit(advice_json(advice) | {"files": {name: str(path) for name, path in files.items()}})
    else:
        _print(advice)
        print_files(files.values())
        named = {"--model": model, "--source": source, "--trained-on": trained_on, "--task": task}
        named |= {"--data": data, "--columns": columns}
        print(f"next: {_command(advice, adapter, named)}")
    if advice.failed:
        raise CellsFailedError(
            f"{len(advice.failed)} of {len(asked.cells)} candidates failed; the first: {': '.join(advice.failed[0])}",
            hint="mend the cause and run the same command again: only what is missing runs",
        )


def _command(advice: Advice, adapter: str | None, named: dict[str, str | None]) -> str:
    """Write the command that makes what is to be deployed."""
    one = advice.deploy
    words = ["plr", "restore", *([] if adapter is None else [adapter]), "--bits", str(one.bits)]
    if one.mode not in plain_modes():
        words += ["--mode", one.mode]
    for option, value in named.items():
        words += [] if value is None else [option, value]
    return shlex.join(words)


def _width(text: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"--bits has {text.strip()!r}", expected="widths with commas between them: 16,8,4")
    return int(text)


def _print(advice: Advice) -> None:
    from rich.table import Table
    from rich.text import Text

    from plr.cli.show import console
    from plr.report.advice import ADVICE_HEAD, advice_notes, advice_rows, advice_words

    out = console()
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    shown = [index for index in range(len(ADVICE_HEAD)) if index != OWN_INTERVAL]
    for index in shown:
        table.add_column(
            ADVICE_HEAD[index], justify="left" if index < 3 else "right", overflow="fold", no_wrap=index == 0
        )
    for one, row in zip(advice.candidates, advice_rows(advice), strict=True):
        table.add_row(*(Text(row[index]) for index in shown), style="bold" if one is advice.deploy else "")
    out.print(table)
    for note in advice_notes(advice):
        out.print(Text(note, style="dim"))
    out.print(Text(advice_words(advice), style="bold"))
