"""The command score: predictions from a file, scored again without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plr.cli.options import Columns, Data, Json, Offline, columns_of
from plr.cli.root import app
from plr.core.text import without_nan
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.evaluation.rescore import Rescored

__all__: list[str] = []


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="Task, or a task file, e.g. gsm8k or my-task.yaml.")],
    predictions: Annotated[
        Path,
        typer.Argument(help='JSON lines {"doc_id": 0, "response": "text"}, a samples_*.jsonl, or a result folder.'),
    ],
    data: Data = None,
    columns: Columns = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Which split was answered.")] = "test",
    missing: Annotated[
        Literal["leave-out", "wrong", "refuse"], typer.Option(help="What becomes of rows without a prediction.")
    ] = "leave-out",
    split_seed: Annotated[int, typer.Option(help="Seed of the cut, where the data has no such split.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write each row with what was read and why it counts.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Score predictions again, whoever made them: the scorers of plr eval, no model, no torch.

    Example: [bold]plr score gsm8k predictions.jsonl --data my-data[/bold]
    """
    from plr.cli.counting import counting
    from plr.cli.show import emit
    from plr.evaluation.predictions import read_predictions
    from plr.evaluation.rescore import rescore
    from plr.study.resolve import Resolver

    if output is not None and output.exists():
        raise UsageError(f"{output} exists", hint="choose another --output: nothing is overwritten")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent}", expected="--output FILE in a folder that is there")
    read = read_predictions(predictions)
    spec = Resolver(offline=offline).task(task, data=data, columns=columns_of(columns), split_seed=split_seed)
    with counting("scoring") as on_progress:
        found = rescore(spec, split, read, missing=missing, on_progress=on_progress)
    if output is not None:
        with output.open("w", encoding="utf-8") as stream:
            for row in found.rows:
                stream.write(json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        emit({**found.about, "metrics": found.metrics, **({"output": str(output)} if output else {})})
    else:
        _print(found, output)


def _print(found: Rescored, output: Path | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from plr.cli.show import console
    from plr.report.metrics import foreign_note
    from plr.scoring.metric import Metric

    about, out = found.about, console()
    out.print(f"[bold]{about['task']}[/bold], {about['split']}: {escape(about['source'])}", highlight=False)
    table = Table("", "metric", "value", "95 % interval", "n", box=None, header_style="bold", pad_edge=False)
    for name, metric in found.metrics.items():
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        ends = "-" if metric["low"] is None else f"{metric['low']:.4f} to {metric['high']:.4f}"
        label = name + foreign_note(Metric.recorded(name, metric))
        table.add_row("*" if name == about["primary"] else "", label, value, ends, str(metric["n"]))
    out.print(table, highlight=False)
    for line in _remarks(found):
        out.print(line, highlight=False)
    if output is not None:
        out.print(str(output), highlight=False)


def _remarks(found: Rescored) -> list[str]:
    """List the remarks that a reader of the numbers needs."""
    about = found.about
    lines: list[str] = []
    if about["without_prediction"]:
        what = "count as wrong" if about["missing"] == "wrong" else "are left out"
        lines.append(f"{about['without_prediction']} of {about['rows']} rows have no prediction and {what}")
    if about["repeated_lines"]:
        lines.append(f"{about['repeated_lines']} lines repeat another and count once")
    if about["rows_not_compared"]:
        lines.append(
            f"{about['rows_not_compared']} samples hold a doc without any field of these rows: only doc_id was compared"
        )
    if unknown := about.get("ended_unknown"):
        lines.append(f"{unknown} predictions do not say whether the model ended: no ended, no strict")
    for metric, kinds in about.get("outcomes", {}).items():
        lines.append(f"{metric}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if outside := about.get("outside_labels"):
        lines.append(f"{outside} answers are none of the labels and count as wrong")
    if any(name == "roc_auc" and metric["value"] is None for name, metric in found.metrics.items()):
        lines.append("roc_auc needs the outputs of the head: the name of a label is no probability")
    return lines
