"""grid and report: a whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plr.cli.options import Json, Offline, Set
from plr.cli.root import app
from plr.errors import CellsFailedError, UsageError

__all__: list[str] = []

File = Annotated[Path, typer.Argument(help="A study file, e.g. configs/studies/quickstart.yaml.")]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results (default: runs/STUDY).")]


@app.command()
def grid(
    study: File,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the steps and which are there already; run nothing.")
    ] = False,
    engine: Annotated[str, typer.Option(help="Where jobs run.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    output: Out = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Run a k x l study: every step once, whatever is already there is reused, a failed cell stops nothing else.

    Example: [bold]plr grid configs/studies/quickstart.yaml --set seeds='[0, 1]'[/bold]
    """
    from plr.cli.show import console, emit, print_files, watch
    from plr.core.store import Store
    from plr.study import Study, failed_cells, load_study, raise_if_all_failed
    from plr.study.resolve import Resolver

    resolver = Resolver(strict=not dry_run, offline=offline)
    work = Study(load_study(study, tuple(set_ or ())), resolver=resolver)
    runtime = work.runtime(workers=workers, offline=offline)
    runtime.check_device()
    store = Store(runtime.home)
    plan = work.plan(store)
    if dry_run:
        _show_plan(work, plan, store, as_json)
        return
    from plr.report import console_table, write_study  # a plan needs none of it

    with watch(list(plan.missing), quiet=as_json) as watcher:
        outcome = work.run(store, runtime, engine=engine, plan=plan, on_event=watcher)
    raise_if_all_failed(work.cells, outcome)
    files = write_study(work, store, output or Path("runs") / work.name, outcome.failed)
    failed = failed_cells(work.cells, outcome)
    made = len(plan.missing) - len(outcome.failed)
    if as_json:
        emit(
            {
                "study": work.name,
                "cells": len(work.cells),
                "failed": [{"cell": cell.label, "error": reason} for cell, reason in failed],
                "steps": {"made": made, "cached": len(plan.cached)},
                "files": {name: str(path) for name, path in files.items()},
            }
        )
    else:
        out = console()
        out.print(console_table(work.results(store, outcome.failed)))
        out.print(f"{made} steps made, {len(plan.cached)} found in {store.home}", highlight=False)
        print_files(files.values())
    if failed:
        raise CellsFailedError(
            f"{len(failed)} of {len(work.cells)} cells failed; the first: {failed[0][0].label}: {failed[0][1]}",
            hint="mend the cause and run the same command again: only what is missing runs",
        )


@app.command()
def report(study: File, set_: Set = None, output: Out = None, offline: Offline = False, as_json: Json = False) -> None:
    """Write table and report of a study from what is in the store; runs nothing.

    Example: [bold]plr report configs/studies/quickstart.yaml[/bold]
    """
    from plr.cli.show import console, emit, print_files
    from plr.core.runtime import default_home
    from plr.core.store import Store
    from plr.report import console_table, write_study
    from plr.study import Study, load_study
    from plr.study.resolve import Resolver

    work = Study(load_study(study, tuple(set_ or ())), resolver=Resolver(offline=offline))
    store = Store(default_home())
    results = work.results(store)
    if all(result.error for result in results):
        raise UsageError(f"no cell of {work.name} is in {store.home} yet", hint=f"run: plr grid {study}")
    files = write_study(work, store, output or Path("runs") / work.name)
    if as_json:
        emit({"study": work.name, "files": {name: str(path) for name, path in files.items()}})
        return
    console().print(console_table(results))
    print_files(files.values())


def _show_plan(work: Any, plan: Any, store: Any, as_json: bool) -> None:
    from rich.table import Table

    from plr.cli.show import console, emit
    from plr.core.specs import Evaluate, Train

    rows = [
        {
            "kind": step.kind,
            "step": step.label,
            "fingerprint": step.fingerprint[:12],
            "dtype": step.dtype if isinstance(step, Train | Evaluate) else None,
            "state": "cached" if step.fingerprint in plan.cached else "to run",
        }
        for step in plan.steps
    ]
    if as_json:
        emit(
            {
                "study": work.name,
                "cells": len(work.cells),
                "dtype": work.dtype,
                "unresolved": work.resolver.unresolved,
                "steps": rows,
            }
        )
        return
    table = Table("step", "", "state", box=None, header_style="bold")
    for row in rows:
        table.add_row(
            row["kind"], row["step"], f"[green]{row['state']}[/green]" if row["state"] == "cached" else row["state"]
        )
    out = console()
    out.print(table)
    count = {
        kind: sum(row["kind"] == kind and row["state"] == "to run" for row in rows)
        for kind in ("base", "adapter", "result")
    }
    out.print(
        f"{len(work.cells)} cells: {count['base']} quantizations, {count['adapter']} trainings and {count['result']} "
        f"evaluations to run in {work.dtype}, {len(plan.cached)} steps cached in {store.home}",
        highlight=False,
    )
    for name in work.resolver.unresolved:
        out.print(f"[yellow]not resolved without the network:[/yellow] {name}")
