"""tasks: which there are, what one asks and how it scores, what is wrong with the data of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plr.cli.options import Columns, Data, Json, Offline, columns_of, store_to_read
from plr.cli.root import app
from plr.core.fingerprint import JsonObject
from plr.errors import DataError, UsageError

if TYPE_CHECKING:
    from plr.tasks import Task

__all__: list[str] = []

tasks_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tasks_app, name="tasks")

Name = Annotated[str, typer.Argument(help="A task, or a task file, e.g. gsm8k or my-task.yaml.")]
SplitSeed = Annotated[int, typer.Option(help="Seed of the cut, where the data has no such split.")]


@tasks_app.callback()
def tasks(context: typer.Context, as_json: Json = False) -> None:
    """List the tasks; show one with a real row, or check the data of one.

    Example: [bold]plr tasks show tiny_math[/bold]
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise UsageError(
                "--json stands before the subcommand", hint="put it at the end: plr tasks show NAME --json"
            )
        return
    from plr.cli.show import console, emit
    from plr.tasks import tasks as registry

    facts = [_facts(registry.get(name)) | {"name": name} for name in registry.names()]
    if as_json:
        emit(facts)
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("task", "answered", "rows from", "primary metric"):
        table.add_column(head, overflow="fold", no_wrap=head == "task")
    for fact in facts:
        by = "in writing" if fact["kind"] == "generation" else "by a head"
        table.add_row(fact["name"], by, fact["source"], fact["primary"])
    console().print(table, highlight=False)
    console().print(
        "\nAll metrics of a task, and a row scored: plr tasks show NAME. --data: rows of your own, which every task takes.\n"
        "A task of your own: one YAML file, wherever a task is named (--task my-task.yaml); what is wrong with it:\n"
        "plr tasks check my-task.yaml",
        highlight=False,
    )


@tasks_app.command()
def show(
    name: Name,
    row: Annotated[int, typer.Option(min=0, help="Which row of the split, from 0.")] = 0,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Where the row is taken from.")
    ] = "test",
    data: Data = None,
    columns: Columns = None,
    split_seed: SplitSeed = 0,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show a task: a real row, its prompt and target, and what the scorers make of right and wrong answers.

    Example: [bold]plr tasks show gsm8k --data my-data[/bold]
    """
    from plr.cli.show import emit
    from plr.tasks import find_task

    task = find_task(name)
    facts = _facts(task) | {"rules": _rules(task)}
    try:
        facts |= {
            "instance": _instance(
                task, name, split, row, data=data, columns=columns, split_seed=split_seed, offline=offline
            )
        }
    except UsageError as error:
        if row or data is not None or task.data is not None:
            raise  # a row, or rows, were named, and are not there
        facts |= {"instance": None, "reason": error.message, "next": error.hint}
    emit(facts) if as_json else _print_one(facts)


@tasks_app.command()
def check(
    name: Name,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens (with --model) or characters that prompt and target may have.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count tokens with this model's tokenizer.")
    ] = None,
    data: Data = None,
    columns: Columns = None,
    split_seed: SplitSeed = 0,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Check the data of a task: leakage between splits, empty targets, wrong gold, labels, truncation. Errors end with 1.

    Example: [bold]plr tasks check my-task.yaml --max-length 512 --model embedded:tiny[/bold]
    """
    from plr.cli.counting import counting
    from plr.cli.show import emit
    from plr.tasks import TaskData, task_of
    from plr.tasks.check import check_task
    from plr.tasks.data.rows import resolve_task

    spec = resolve_task(name, data=data, columns=columns_of(columns), split_seed=split_seed, offline=offline)
    lengths, unit = None, "characters"
    if model is not None:
        lengths, unit = _counter(model, offline), "tokens"
    rows = TaskData(path=spec.path, revision=spec.revision, split_seed=split_seed, columns=spec.columns)
    with counting("gold answers") as tell:
        report = check_task(task_of(spec), rows, max_length=max_length, lengths=lengths, unit=unit, on_progress=tell)
    if as_json:
        emit(
            {
                "task": spec.name,
                "errors": report.errors,
                "findings": [finding._asdict() for finding in report.findings],
                "splits": report.splits,
                "labels": report.labels,
                "longest": {"unit": unit, **report.longest},
            }
        )
    else:
        _print_report(spec.name, report)
    if report.errors:
        raise typer.Exit(1)


def _facts(task: Task) -> JsonObject:
    from plr.tasks import Task as Base

    source = "--data"
    if task.data is not None:
        source = task.data
    elif task.hub is not None:
        source = f"{task.hub.id} ({task.hub.config})" if task.hub.config else task.hub.id
    elif type(task).generated is not Base.generated and task.name.startswith("tiny_"):
        source = "made by plr"
    facts: JsonObject = {
        "name": task.name,
        "kind": task.kind,
        "version": task.version,
        "source": source,
        "splits": dict(task.hub.splits) if task.hub is not None else None,
        "metrics": list(task.metrics),
        "units": {name: task.metric(name).record for name in task.metrics},
        "primary": task.primary,
    }
    if task.kind == "generation":
        facts |= {"max_new_tokens": task.max_new_tokens, "stop": list(task.stop)}
    return facts


def _rules(task: Task) -> str:
    """Read the first words of the module that the task is written in."""
    import inspect
    import sys

    if task.definition is not None:
        scorer = getattr(task, "scorer", None)
        return "a task of your own, from a file" + ("" if scorer is None else f", scored as {scorer.name} is")
    return (inspect.getdoc(sys.modules[type(task).__module__]) or "").partition("\n\n")[0].replace("\n", " ")


def _instance(
    task: Task,
    name: str,
    split: str,
    row: int,
    *,
    data: str | None,
    columns: str | None,
    split_seed: int,
    offline: bool,
) -> JsonObject:
    from plr.tasks import Classification
    from plr.tasks.data.rows import head_of, load_split, resolve_task
    from plr.tasks.specimen import specimens

    spec = resolve_task(name, data=data, columns=columns_of(columns), split_seed=split_seed, offline=offline)
    rows = load_split(spec, split).examples
    if row >= len(rows):
        raise DataError(f"there is no row {row} of the {split} split", expected=f"0 to {len(rows) - 1}")
    example = rows[row]
    head = head_of(spec)
    return {
        "id": example.id,
        "split": split,
        "rows": len(rows),
        "source": load_split(spec, split).report.source,
        "row": dict(example.row),
        "prompt": example.prompt,
        "target": example.target,
        **({"texts": list(task.texts(example.row))} if isinstance(task, Classification) else {}),
        **({"labels": list(head.names)} if head is not None else {}),
        "scored": [
            {
                "what": one.what,
                "response": one.response.text,
                "ended": one.response.ended,
                "scores": {
                    metric: {"value": score.value, "answer": score.answer, "explanation": score.explanation}
                    for metric, score in one.scores.items()
                },
            }
            for one in specimens(task, example, rows)
        ],
    }


def _counter(model: str, offline: bool) -> Any:
    """Measure the lengths of a row in tokens, cut as training cuts them."""
    from plr.bases.load import load_tokenizer
    from plr.bases.resolve import resolve_model
    from plr.core.quiet import quiet_libraries
    from plr.lm.tokens import encode_pair

    quiet_libraries()
    tokenizer = load_tokenizer(resolve_model(model, offline=offline), offline=offline, home=store_to_read())

    def lengths(row: Any) -> tuple[int, int]:
        prompt, target = encode_pair(tokenizer, row.prompt, row.target)
        return len(prompt), len(target)

    return lengths


def _print_one(facts: JsonObject) -> None:
    from rich.markup import escape

    from plr.cli.show import console
    from plr.report.metrics import foreign_note
    from plr.scoring.metric import Metric

    out = console()
    out.print(f"[bold]{facts['name']}[/bold]  {escape(facts['rules'])}", highlight=False)
    lines = {"kind": facts["kind"], "rows from": facts["source"], "primary": facts["primary"]}
    lines["metrics"] = ", ".join(facts["metrics"])
    metrics = [Metric.recorded(name, record) for name, record in facts["units"].items()]
    if notes := [metric.name + note for metric in metrics if (note := foreign_note(metric))]:
        lines["units"] = "; ".join(notes)
    if facts["kind"] == "generation":
        lines["ends at"] = f"EOS, {facts['max_new_tokens']} tokens" + "".join(f", {text!r}" for text in facts["stop"])
    for label, value in lines.items():
        out.print(f"  {label:10} {escape(value)}", highlight=False)
    one = facts["instance"]
    if one is None:
        out.print(f"[yellow]no row to show:[/yellow] {escape(facts['reason'])}", highlight=False)
        if facts["next"]:
            out.print(f"  next: {escape(facts['next'])}", highlight=False)
        return
    out.print(
        f"\n[bold]{one['id']}[/bold], one of {one['rows']} rows of {one['split']} in {escape(one['source'])}",
        highlight=False,
    )
    for label in ("prompt", "target"):
        out.print(f"[dim]{label}[/dim]", highlight=False)
        out.print(escape(one[label]), highlight=False)
    if "labels" in one:
        out.print(f"[dim]labels[/dim] {escape(', '.join(one['labels']) or 'a number')}", highlight=False)
    for specimen in one["scored"]:
        ended = "" if facts["kind"] == "classification" or specimen["ended"] else ", without EOS"
        out.print(f"\n[bold]{specimen['what']}{ended}[/bold]", highlight=False)
        for metric, score in specimen["scores"].items():
            value = "-" if score["value"] is None else f"{score['value']:.2f}"
            out.print(f"  {metric:34} {value:>5}  {escape(_line(score['explanation']))}", highlight=False)
        if not specimen["scores"]:
            out.print(
                f"  {', '.join(facts['metrics'])}: over all rows at once, none of them of one row", highlight=False
            )


def _print_report(name: str, report: Any) -> None:
    from rich.markup import escape

    from plr.cli.show import console

    out = console()
    colours = {"error": "red", "remark": "yellow", "fine": "green"}
    sizes = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    out.print(f"[bold]{name}[/bold]  {sizes}", highlight=False)
    for finding in report.findings:
        colour = colours[finding.level]
        out.print(f"  [{colour}]{finding.level:7}[/{colour}] {finding.about:8} {escape(finding.text)}", highlight=False)
    for split, labels in report.labels.items():
        shown = ", ".join(f"{_line(label)} {count}" for label, count in labels.items())
        out.print(f"  {'':7} {split:8} {escape(shown)}", highlight=False)
    count = f"{report.errors} error" + "s" * (report.errors > 1)
    out.print(count if report.errors else "no errors", highlight=False)


def _line(text: str) -> str:
    return " ".join(text.split())[:100]
