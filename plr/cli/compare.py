"""The command compare: costs and scores of the adapters of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Json, Offline, Set
from plr.cli.root import app
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.report.costs import CostRow

__all__: list[str] = []


@app.command()
def compare(
    study: Annotated[Path, typer.Argument(help="A study file, e.g. configs/studies/quickstart.yaml.")],
    set_: Set = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for compare.md, compare.svg and .png (default: runs/STUDY)."),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Compare what each adapter of a study costs (parameters, disk, memory, time) with what it gives; runs nothing.

    Example: [bold]plr compare configs/studies/quickstart.yaml[/bold]
    """
    from plr.cli.show import emit, print_files
    from plr.core.runtime import default_home
    from plr.core.store import Store
    from plr.report.cells import ResultSet
    from plr.report.compare import write_compare
    from plr.report.costs import compare_rows
    from plr.study import Study, load_study
    from plr.study.costs import costs_of
    from plr.study.resolve import Resolver

    work = Study(load_study(study, tuple(set_ or ())), resolver=Resolver(offline=offline))
    store = Store(default_home())
    results = work.results(store)
    if all(result.error for result in results):
        raise UsageError(f"no cell of {work.name} is in {store.home} yet", hint=f"run: plr grid {study}")
    costs = costs_of(work.cells, store)
    files = write_compare(results, costs, output or Path("runs") / work.name, work.name)
    rows = compare_rows(ResultSet(results), costs)
    if as_json:
        keys = (
            "task",
            "model",
            "adapter",
            "train_bits",
            "restore_bits",
            "mode",
            "costs",
            "metric",
            "value",
            "low",
            "high",
            "n",
            "loss",
            "seeds",
        )
        values = [{key: getattr(row, key) for key in keys} for row in rows]
        emit({"study": work.name, "rows": values, "files": {name: str(path) for name, path in files.items()}})
        return
    _print(rows)
    print_files(files.values())


def _print(rows: list[CostRow]) -> None:
    """Print a table for each task and model, their names and the metric above it."""
    from rich.table import Table

    from plr.cli.show import console
    from plr.report.compare import COMPARE_HEAD, compare_texts

    texts = compare_texts(rows)
    groups: dict[tuple[str, str, str], list[tuple[str, ...]]] = {}
    for text in texts:
        groups.setdefault((text[0], text[1], text[11]), []).append(text)
    shown = [i for i in range(len(COMPARE_HEAD)) if i not in (0, 1, 11)]
    for (task, model, metric), group in groups.items():
        console().print(f"[bold]{task}, {model}[/bold]: {metric}", highlight=False)
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
        for i in shown:
            table.add_column(COMPARE_HEAD[i], justify="left" if i < 4 else "right", no_wrap=i in (3, 12, 13, 14))
        for text in group:
            table.add_row(*(text[i] for i in shown))
        console().print(table)
