"""The command ls: the artifacts of the store as a table, as names, or as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Json, lab
from plr.cli.root import app
from plr.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from plr.core.store import Artifact, Store
    from plr.study.listing import Listed

__all__: list[str] = []

HEADS = {"hash": "hash", "kind": "kind", "model": "model", "k": "k", "l": "l", "mode": "mode", "method": "method",
         "task": "task", "score": "score (n)", "metric": "metric", "size": "size", "date": "date"}  # fmt: skip
LEFT_OUT = ("size", "date", "mode")
"""Columns that a narrow terminal does without, the first one first."""
FOLDED = ("model", "task")
"""Columns that take several lines where nothing else is left to do without."""
SHORTEST = 6
"""Least digits of a hash that are shown."""


def _filter(name: str, what: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=f"{what}; a pattern such as 'tiny_*' too, and several times for several.")


@app.command("ls")
def list_(
    kind: Annotated[str | None, typer.Argument(help="base, adapter, restored or result.")] = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Only this kind, as the argument; several times for several.")
    ] = None,
    model: Annotated[
        list[str] | None, _filter("model", "Only of this source model, by its whole name or the part after /")
    ] = None,
    k: Annotated[list[str] | None, _filter("k", "Only trained on k bits, or bases of k bits")] = None,
    ell: Annotated[list[str] | None, _filter("l", "Only served on l bits")] = None,
    mode: Annotated[list[str] | None, _filter("mode", "Only restored in this mode")] = None,
    task: Annotated[list[str] | None, _filter("task", "Only of this task: scored, trained on or calibrated on")] = None,
    method: Annotated[
        list[str] | None, _filter("method", "Only this method of adapter, of bases this quantizer; none: bases alone")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="date, score, size or name: the newest, best, largest or last one at the end.")
    ] = "date",
    reverse: Annotated[bool, typer.Option("--reverse", help="The newest, best, largest or last one first.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many: the newest, the best, the largest or the last.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Print names alone, one a line; each is a REF for any command.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the artifacts of the store with model, k, l, mode, method, task, score, size and date, the newest last.

    The first column is a REF: plr show HASH is that artifact. A score is the primary metric, behind it the number of documents.
    A base has the task whose rows calibrated it. Scores of several metrics are sorted each by themselves.

    Example: [bold]plr ls result --task tiny_math --sort score --limit 5[/bold]
    """
    from plr.cli.show import emit
    from plr.study.listing import arranged, select

    if names and as_json:
        raise UsageError("--names and --json were given", expected="one of them", hint="--json has the names, too")
    store = lab().store
    rows, broken = _read(store, _kinds([*([kind] if kind else []), *(kinds or [])]))
    filters = {"model": model, "k": k, "l": ell, "mode": mode, "task": task, "method": method}
    chosen = arranged(select(rows, **filters), sort, limit=limit, reverse=reverse)
    if as_json:
        emit([row.record for row in chosen])
    elif names:
        for row in chosen:
            print(row.name)
    elif chosen:
        _print_table(chosen, store)
    else:
        _print_nothing(rows, {name: wanted for name, wanted in filters.items() if wanted}, store)
    if broken:
        raise IntegrityError(
            f"{len(broken)} more without a manifest to go by; the first: {broken[0].message}",
            expected=broken[0].expected,
            hint=broken[0].hint,
        )


def _kinds(asked: Sequence[str]) -> list[str]:
    from plr.core.specs import KINDS
    from plr.registry import did_you_mean

    for kind in asked:
        if kind not in KINDS:
            raise UsageError(
                f"unknown kind {kind!r}", expected="one of " + ", ".join(KINDS), hint=did_you_mean(kind, KINDS)
            )
    return list(asked or KINDS)


def _read(store: Store, kinds: list[str]) -> tuple[list[Listed], list[IntegrityError]]:
    from plr.study.listing import listed

    rows: list[Listed] = []
    broken: list[IntegrityError] = []
    for artifact in store.all():
        if artifact.path.parent.name not in kinds:
            continue
        try:
            rows.append(listed(artifact))
        except IntegrityError as error:
            broken.append(error)
    return rows, broken


def _print_nothing(rows: Sequence[Listed], filters: dict[str, list[str]], store: Store) -> None:
    """Say why the list is empty, and of each filter what it could have found."""
    from plr.cli.show import console

    out = console()
    if not rows:
        what = "is empty" if not store.all() else "holds none of this kind"
        out.print(f"the store {store.home} {what}: run plr quantize", highlight=False, markup=False)
        return
    asked = " ".join(f"--{name} {pattern}" for name, patterns in filters.items() for pattern in patterns)
    out.print(f"none of {len(rows)} artifacts fits {asked}", highlight=False, markup=False)
    for name in filters:
        there = sorted({text for row in rows if (text := row.text(name))})
        shown = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
        out.print(f"  {name}: {shown or 'none has one'}", highlight=False, markup=False)


def _print_table(rows: Sequence[Listed], store: Store) -> None:
    """Print the rows in the width there is; a pipe has any width."""
    from rich.markup import escape
    from rich.table import Table

    from plr.cli.show import console

    out = console()
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    columns, left_out, pad = _columns(rows, store.all(), None if wide else out.width)
    table = Table(box=None, header_style="bold", padding=(0, pad, 0, 0), pad_edge=False)
    for name in columns:
        right = name in ("k", "l", "score", "size")
        fold = name in FOLDED
        table.add_column(HEADS[name], justify="right" if right else "left", no_wrap=not fold, overflow="fold")
    for values in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, values))
    if wide:
        out.width = max(out.width, _width(columns, pad))
    out.print(table)
    if left_out:
        what = ", ".join(left_out)
        out.print(f"[dim]left out here: {what}; --json has all[/dim]", highlight=False)


def _columns(
    rows: Sequence[Listed], everything: Sequence[Artifact], width: int | None
) -> tuple[dict[str, list[str]], list[str], int]:
    """Choose columns that fit in `width` (None: any); return their cells, the names of those left out, and the padding."""
    columns = {name: [_cell(row, name) for row in rows] for name in HEADS}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    left_out: list[str] = []
    pad = 2

    def fits() -> bool:
        return width is None or _width(columns, pad) <= width

    if fits():
        return columns, left_out, pad
    if columns.pop("metric", None) is not None:
        left_out.append(HEADS["metric"])
    if not fits():
        columns["date"] = [date[:10] for date in columns["date"]]
    if not fits():
        digits = _digits([artifact.path.name.rpartition("-")[2] for artifact in everything])
        columns["hash"] = [short[:digits] for short in columns["hash"]]
    if not fits():
        pad = 1
    if not fits() and "model" in columns:
        columns["model"] = [model.rpartition("/")[2] for model in columns["model"]]
    for name in LEFT_OUT:
        if not fits() and columns.pop(name, None) is not None:
            left_out.append(HEADS[name])
    return columns, left_out, pad


def _cell(row: Listed, name: str) -> str:
    from plr.cli.show import size

    match name:
        case "hash":
            return row.name.rpartition("-")[2]
        case "kind":
            return row.artifact.record.kind
        case "score":
            return "" if row.score is None else f"{row.score.metric.show(row.score.value)} ({row.score.n})"
        case "metric":
            return "" if row.score is None else row.score.metric.name
        case "size":
            return size(row.bytes)
        case "date":
            return row.date[:16].replace("T", " ")
        case "model":
            return row.model or row.name.rpartition("-")[0]  # a step that this version does not know has its name
        case _:
            return row.text(name)


def _width(columns: dict[str, list[str]], pad: int) -> int:
    from rich.cells import cell_len

    return sum(max(map(cell_len, (HEADS[name], *cells))) for name, cells in columns.items()) + pad * (len(columns) - 1)


def _digits(hashes: Sequence[str]) -> int:
    """Count the digits that tell all hashes apart, `SHORTEST` at least.

    >>> _digits(["1234567aaaaa", "1234568aaaaa"]), _digits(["1234567aaaaa"])
    (7, 6)
    """
    ordered = sorted(set(hashes))
    digits = SHORTEST
    for one, two in pairwise(ordered):
        while one[:digits] == two[:digits]:
            digits += 1
    return digits
