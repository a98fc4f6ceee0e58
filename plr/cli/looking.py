"""The commands generate and diff: answers of a model, and of two results side by side."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plr.cli.options import Columns, Data, Device, GivenModel, Json, Offline, Source, TrainedOn, columns_of, lab
from plr.cli.root import app
from plr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plr.evaluation.speaker import Answer, Asked, Sampling, Speaker
    from plr.lab import EvaluateOptions, Lab
    from plr.report.diff import Diff, Row

__all__: list[str] = []

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Write control characters of a model's answer as escapes: a terminal would obey them.

    >>> plain("a\\x1b[31m\\tb")
    'a\\\\x1b[31m\\tb'
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@app.command("generate")
def generate_(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            help="One or two: base, adapter, restored adapter, PEFT folder, model folder or hub id; then a prompt, or - to read it."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Ask a row of this task as plr eval asks it.")
    ] = None,
    row: Annotated[
        int | None, typer.Option("--row", min=0, help="Which row, by its id in results; the first if left out.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="The model's chat template, or the text as it is; of a plain model the template, if left out.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; 256, or what the task says.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token, as plr eval.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draw; the same for both models.")] = 0,
    model: GivenModel = None,
    source: Source = None,
    trained_on: TrainedOn = None,
    data: Data = None,
    columns: Columns = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the computation, as plr eval.")
    ] = "auto",
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Let a model answer, or two side by side: a prompt, a row of a task beside its gold, or a small chat.

    Example: [bold]plr generate 3fa9c1 embedded:tiny --task tiny_math --row 4[/bold]
    """
    from plr.cli.show import emit
    from plr.evaluation.speaker import Sampling

    here = lab(device, offline, dtype=dtype)
    sampling = Sampling(temperature, top_p, seed)
    given: EvaluateOptions = {"model": model, "source": source, "trained_on": trained_on}
    given |= {"data": data, "columns": columns_of(columns)}
    names, prompt = _refs_and_prompt(here, list(refs or []), task)
    asked = None
    if task is not None:
        if prompt is not None:
            raise UsageError("a prompt and --task were given", expected="one of them")
        asked = here.row(names[0], task, number=row, **given)
        prompt = asked.prompt
    elif row is not None:
        raise UsageError("--row is of a task", hint="give --task NAME")
    targets = [here.target(name, task, **given) for name in names]
    if prompt is None:
        if as_json or len(names) > 1 or not sys.stdin.isatty():
            raise UsageError(
                "there is nothing to ask", expected="a prompt after the models, - to read it, or --task NAME"
            )
        _chat(here, targets[0], names[0], chat, max_new_tokens or 256, sampling)
        return
    longest = max_new_tokens or (256 if asked is None else asked.cell.step.max_new_tokens)
    answers: list[Answer] = []
    for target in targets:
        with here.speaker(target) as one:
            text = _framed(one, target, prompt, chat if asked is None else False)
            stops = () if asked is None else asked.cell.stops
            stream = _stream(as_json=as_json, alone=len(targets) == 1 and asked is None)
            answers.append(one.answer(text, max_new_tokens=longest, stop=stops, sampling=sampling, on_text=stream))
            if stream is not None:
                print()
                return
    if as_json:
        emit(_value(names, prompt, answers, asked))
    elif len(answers) == 1 and asked is None:
        print(plain(answers[0].text))
    else:
        _print_answers(names, prompt, answers, asked)


def _refs_and_prompt(here: Lab, words: list[str], task: str | None) -> tuple[list[str | None], str | None]:
    """Tell models from the prompt: the last word is the prompt if it names nothing and something stands before it."""
    if not words:
        return [None], None
    if len(words) > 3:
        raise UsageError(
            f"{len(words)} words were given", expected="one or two models and a prompt; put the prompt in quotes"
        )
    last = words[-1]
    if len(words) > 1 and task is None and (last == "-" or len(words) == 3 or not here.names(last)):
        prompt = sys.stdin.read() if last == "-" else last
        if not prompt.strip():
            raise UsageError("the prompt is empty")
        return [*words[:-1]], prompt
    return [*words], None


def _framed(one: Speaker, target: Any, prompt: str, chat: bool | None) -> str:
    """Put the prompt into the chat template, where that is asked for or the model is a plain one that has it."""
    from plr.core.specs import Restore

    wanted = chat if chat is not None else one.has_template and not isinstance(target, Restore)
    return one.chat_prompt([{"role": "user", "content": prompt}]) if wanted else prompt


def _stream(*, as_json: bool, alone: bool) -> Any:
    """Return what shows the pieces of an answer as they are written; None where nobody watches."""
    if as_json or not alone or not sys.stdout.isatty():
        return None

    def show(text: str) -> None:
        print(plain(text), end="", flush=True)

    return show


def _chat(here: Lab, target: Any, name: str | None, chat: bool | None, longest: int, sampling: Sampling) -> None:
    """Talk until /quit or the end of input; /reset forgets what was said."""
    with here.speaker(target) as one:
        framed = one.has_template if chat is None else chat
        said: list[dict[str, str]] = []
        print(f"{name or target.label}; {'its chat template' if framed else 'plain text'}; /reset, /quit")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                said.clear()
                continue
            if not line:
                continue
            said.append({"role": "user", "content": line})
            text = one.chat_prompt(said) if framed else "\n".join(message["content"] for message in said)
            answer = one.answer(
                text,
                max_new_tokens=longest,
                sampling=sampling,
                on_text=lambda piece: print(plain(piece), end="", flush=True),
            )
            print()
            said.append({"role": "assistant", "content": answer.text})


def _value(names: Sequence[str | None], prompt: str, answers: Sequence[Answer], asked: Asked | None) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for name, answer in zip(names, answers, strict=True):
        one: dict[str, Any] = {"model": name, "text": answer.text, "tokens": answer.tokens, "ended": answer.ended}
        one["stopped"] = answer.stopped
        if asked is not None:
            one["scores"] = {metric: score for metric, (score, _) in asked.scores(answer).items()}
        found.append(one)
    more = {} if asked is None else {"row": asked.number, "gold": asked.row.target}
    return {"prompt": prompt, **more, "answers": found}


def _print_answers(names: Sequence[str | None], prompt: str, answers: Sequence[Answer], asked: Asked | None) -> None:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from plr.cli.show import console

    out = console()
    if asked is not None:
        out.print(Text(f"row {asked.number} of {asked.cell.step.task.name}", style="bold"))
        out.print(Text(plain(prompt)))
        out.print(Text(f"gold: {plain(asked.row.target.strip())}", style="green"))
    table = Table(show_lines=True)
    columns: list[Group] = []
    for name, answer in zip(names, answers, strict=True):
        table.add_column(Text(name or "the latest"), ratio=1, overflow="fold")
        parts = [Text(plain(answer.text.strip()))]
        if asked is not None:
            primary = asked.cell.task.primary
            for metric, (score, reason) in asked.scores(answer).items():
                value = "-" if score is None else f"{score:g}"
                parts.append(
                    Text(
                        f"{metric} {value}" + (f": {plain(reason)}" if metric == primary and reason else ""),
                        style="dim",
                    )
                )
        if not answer.ended and answer.stopped is None:
            parts.append(Text(f"cut at {answer.tokens} tokens", style="dim"))
        columns.append(Group(*parts))
    if out.width >= 60 or len(columns) == 1:
        table.add_row(*columns)
        out.print(table)
        return
    for name, column in zip(names, columns, strict=True):
        out.print(Text(name or "the latest", style="bold"))
        out.print(column)


@app.command("diff")
def diff_(
    first: Annotated[str, typer.Argument(help="A result: path, name or hash prefix.")],
    second: Annotated[str, typer.Argument(help="Another one of the same task and rows.")],
    only: Annotated[
        Literal["changed", "gained", "lost", "all"], typer.Option(help="Which rows are shown.")
    ] = "changed",
    metric: Annotated[str | None, typer.Option(help="Compare by this metric; the primary one if left out.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show so many rows; --json and 0 have all.")] = 20,
    prompts: Annotated[bool, typer.Option("--prompts", help="Show the prompts too.")] = False,
    as_json: Json = False,
) -> None:
    """Show the rows on which two results differ, both answers beside the gold, with counts and the paired test.

    Example: [bold]plr diff 3fa9c1 b02d77 --only lost --prompts[/bold]
    """
    from plr.cli.show import emit
    from plr.report.diff import diff_json

    found = lab().diff(first, second, metric)
    wanted = {"changed": ("gained", "lost"), "gained": ("gained",), "lost": ("lost",)}.get(only)
    rows = [row for row in found.rows if wanted is None or row.change in wanted]
    if as_json:
        emit(diff_json(found, rows))
    else:
        _print_diff(found, rows, limit or len(rows), prompts)


def _print_diff(found: Diff, rows: Sequence[Row], limit: int, prompts: bool) -> None:
    from rich.text import Text

    from plr.cli.show import console
    from plr.report.diff import result_words
    from plr.report.metrics import with_unit

    out, pair, metric = console(), found.contrast, found.metric
    out.print(Text(f"1  {result_words(found.first)}"))
    out.print(Text(f"2  {result_words(found.second)}"))
    for row in rows[:limit]:
        style = {"gained": "green", "lost": "red"}.get(row.change, "")
        out.print()
        scores = "" if metric.proportion else f"  {metric.show(row.scores[0])} -> {metric.show(row.scores[1])}"
        out.print(Text(f"row {row.doc}: {row.change}{scores}", style=f"bold {style}".strip()))
        if prompts:
            out.print(Text(plain(row.prompt), style="dim"))
        out.print(Text(f"gold  {plain(row.gold.strip())}"))
        out.print(Text(f"1     {plain(row.answers[0].strip())}"))
        out.print(Text(f"2     {plain(row.answers[1].strip())}"))
    if len(rows) > limit:
        out.print(Text(f"\n{len(rows) - limit} more rows: --limit 0", style="dim"))
    out.print()
    counts = ", ".join(f"{count} {change}" for change, count in found.counts.items())
    out.print(Text(f"{found.first.task.name}, {metric.name}: {counts} of {len(found.rows)} rows", style="bold"))
    ends = (
        "" if pair.low is None else f" (95 % interval {metric.show_signed(pair.low)} to {metric.show_signed(pair.high)}"
    )
    p = "" if pair.p is None else f", McNemar p = {pair.p:.2g}"
    out.print(Text(f"2 against 1: {with_unit(metric, pair.difference)}{ends}{p}{')' if ends else ''}"))
    if any(found.left_out):
        out.print(
            Text(f"left out, as the other did not score them: {found.left_out[0]} rows of 1, {found.left_out[1]} of 2")
        )
