"""quantize, train, restore, eval: each makes one artifact, and whatever it needs first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption

from plr.cli.options import (
    Columns,
    Data,
    Device,
    GivenModel,
    Json,
    Model,
    Offline,
    Output,
    Preset,
    Set,
    Source,
    Task,
    TrainedOn,
    columns_of,
    finish,
    finish_all,
    lab,
)
from plr.cli.root import app
from plr.core.fingerprint import JsonObject
from plr.core.modes import MODES, modes_help
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.core.store import Artifact
    from plr.lab import EvaluateOptions, QuantizeOptions, TrainOptions

__all__: list[str] = []

if TYPE_CHECKING:
    ModeName = str
else:
    ModeName = Literal[tuple(MODES)]


class ListsMethods(TyperCommand):
    """A command whose `--method` names the registered quantizers; they are imported with its options, not for `plr --help`."""

    def get_params(self, ctx: Any) -> Any:
        from plr.quantizers import methods_help

        for param in self.params:
            if isinstance(param, TyperOption) and param.name == "method":
                param.help = f"One of {methods_help()}."
        return super().get_params(ctx)


@app.command(cls=ListsMethods)
def quantize(
    model: Model = "embedded:tiny",
    bits: Annotated[str, typer.Option("--bits", "-b", help="8, 4, 3 or 2; several in one go: 8,4,3,2.")] = "4",
    method: Annotated[str | None, typer.Option(help="How it is quantized.")] = None,
    calibration: Annotated[str | None, typer.Option(help="task:NAME, or a JSONL or text file.")] = None,
    samples: Annotated[int | None, typer.Option(help="How many calibration samples are drawn.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Columns that share a scale; -1 for a whole row.")] = None,
    gate_text: Annotated[
        str | None, typer.Option("--gate-text", help="A text to measure the base on too; changes no byte of it.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Hold one block at a time, activations on disk: slower, same result.")
    ] = False,
    data: Data = None,
    columns: Columns = None,
    preset: Preset = None,
    set_: Set = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to k bits: with GPTQ, calibrated on a task's training data, or with another method.

    Example: [bold]plr quantize --model embedded:tiny --bits 3 --calibration task:tiny_sql --samples 64[/bold]
    """
    from plr.lab import check_bits

    widths = _widths(bits)
    for width in widths:
        check_bits(width, below_16=True)
    here = lab(device, offline, overrides=set_ or (), low_memory=low_memory)
    options: QuantizeOptions = {
        "method": method,
        "calibration": calibration,
        "samples": samples,
        "seed": seed,
        "group_size": group_size,
        "gate_text": gate_text,
        "data": data,
        "columns": columns_of(columns),
        "preset": preset,
        "overrides": set_ or (),
    }
    steps = [here.base(model, width, **options) for width in widths]
    finish_all(steps, here, output=output, as_json=as_json)


def _widths(text: str) -> list[int]:
    """Parse a list of bit widths: `8,4` -> [8, 4].

    Raises:
        UsageError: something in it is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"bits is {text!r}", expected="one width, or several with commas between them: 8,4,3,2")
    return list(dict.fromkeys(map(int, parts)))


@app.command()
def train(
    model: Model = "embedded:tiny",
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            "-b",
            help="Bit width of the base: 16, 8, 4, 3 or 2; 4, or that of a quantized checkpoint, if left out.",
        ),
    ] = None,
    source: Source = None,
    task: Task = None,
    adapter: Annotated[str | None, typer.Option("--adapter", "-a", help="Adapter method, e.g. lora.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the adapter's start and of the order of rows.")] = 0,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML with keys of a study file.")] = None,
    data: Data = None,
    columns: Columns = None,
    preset: Preset = None,
    set_: Set = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train an adapter on a k-bit base (the base is made first if it is not there), or on a quantized checkpoint as it is.

    Example: [bold]plr train --bits 4 --task tiny_math --set train.epochs=1[/bold]
    """
    here = lab(device, offline, config=config, overrides=set_ or ())
    options: TrainOptions = {
        "adapter": adapter,
        "seed": seed,
        "task": task,
        "data": data,
        "columns": columns_of(columns),
        "preset": preset,
        "config": config,
        "source": source,
        "overrides": set_ or (),
    }
    step = here.adapter(model, bits, **options)
    finish(step, here, output=output, as_json=as_json)


@app.command()
def restore(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="Path, name or hash prefix, the latest if left out; or a PEFT folder, or ORG/NAME of the hub."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", "-b", help="Bit width of the base: 16, 8, 4, 3 or 2; 16 if left out.")
    ] = None,
    mode: Annotated[
        ModeName | None,
        typer.Option(help=f"{modes_help()}."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a dense checkpoint with the adapter merged in.")
    ] = False,
    t: Annotated[
        float | None,
        typer.Option("--t", min=0, max=1, help="Of --mode path: place between the bases; chosen if left out."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Factor of the adapter; chosen if left out. Alone it means --mode scale."),
    ] = None,
    correct: Annotated[
        int | None,
        typer.Option("--correct", min=1, help="Rank of the correction (32). Alone it means --mode correct."),
    ] = None,
    select_rows: Annotated[
        int | None,
        typer.Option("--select-rows", min=2, help="Validation rows that choose (64; of auto 1000, half certify)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The base, where not the one that the adapter names; another place of it."),
    ] = None,
    source: Source = None,
    trained_on: TrainedOn = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="A quantized checkpoint to restore to, instead of a base that plr makes."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How the l-bit base is quantized; as the adapter's own base if left out.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Task that an adapter of another tool was trained on: it calibrates the l-bit base."
        ),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="A JSONL or text file that calibrates the l-bit base instead.")
    ] = None,
    data: Data = None,
    columns: Columns = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Attach although the provenance does not agree.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what every mode serves and which to take, and make nothing.")
    ] = False,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Put a trained adapter on an l-bit base without retraining (Post-LoRA Restoration).

    Example: [bold]plr restore --bits 16 --merge -o served[/bold]
    """
    here = lab(device, offline)
    if explain:
        k = None
        if adapter is not None:
            k = here.trained(adapter, model=model, source=source, trained_on=trained_on).trained_bits or None
        _explain(k, 16 if bits is None and k is not None else bits, as_json=as_json)
        return
    step = here.restored(
        adapter,
        bits,
        mode=mode,
        merge=merge,
        t=t,
        scale=scale,
        correct=correct,
        select_rows=select_rows,
        model=model,
        source=source,
        trained_on=trained_on,
        base=base,
        method=method,
        task=task,
        calibration=calibration,
        data=data,
        columns=columns_of(columns),
        allow_mismatch=allow_mismatch,
    )
    finish(step, here, output=output, as_json=as_json)


def _explain(k: int | None, ell: int | None, *, as_json: bool) -> None:
    """Print the table of modes, for an adapter of k bits on l where both are known."""
    from plr.cli.show import console, emit
    from plr.core.modes import EXPLAINED, RECOMMENDED, explained

    rows = explained(k, ell)
    if as_json:
        emit({"modes": [dict(zip(EXPLAINED, row, strict=True)) for row in rows], "recommended": RECOMMENDED})
        return
    from rich.table import Table

    table = Table(*(head for head in EXPLAINED if head != "fits" or rows[0][-1]), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    out = console()
    out.print(table)
    out.print()
    out.print(RECOMMENDED, highlight=False)


@app.command("eval")
def evaluate(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="Base, adapter or restored adapter, the latest if left out; or a folder or hub id of a model or of an adapter."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task to be scored by; several with commas between them.")
    ] = None,
    model: GivenModel = None,
    source: Source = None,
    trained_on: TrainedOn = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only this many rows, drawn by seed.")] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which split is scored.")] = "test",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    num_fewshot: Annotated[
        int, typer.Option("--num-fewshot", min=0, help="Solved training rows before every question.")
    ] = 0,
    fewshot_seed: Annotated[
        int | None, typer.Option(help="Draws them; the first of the train split if left out.")
    ] = None,
    engine: Annotated[
        Literal["hf", "vllm"], typer.Option(help="What writes the answers: transformers here, or vLLM (a GPU).")
    ] = "hf",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the computation, and part of what a result is; auto: bfloat16 where the device has it."),
    ] = "auto",
    data: Data = None,
    columns: Columns = None,
    output: Output = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Score a model, a base, an adapter on its own base, or a restored adapter.

    Example: [bold]plr eval --task tiny_math --limit 100[/bold]
    """
    here = lab(device, offline, dtype=dtype)
    options: EvaluateOptions = {
        "model": model,
        "source": source,
        "trained_on": trained_on,
        "data": data,
        "columns": columns_of(columns),
        "split": split,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "num_fewshot": num_fewshot,
        "fewshot_seed": fewshot_seed,
        "engine": engine,
    }
    steps = [here.result(ref, name, **options) for name in _tasks(task, data)]
    artifacts = finish_all(steps, here, output=output, as_json=as_json)
    for artifact in [] if as_json else artifacts:
        _print_scores(artifact, several=len(artifacts) > 1)


def _tasks(text: str | None, data: str | None) -> list[str | None]:
    """Parse a list of tasks.

    Raises:
        UsageError: a task that is named twice, or one folder of data for several.
    """
    if text is None or Path(text).is_file():  # a file may have a comma in its name
        return [text]
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise UsageError(
            f"--task is {text!r}", expected="tasks, each once, with commas between them: tiny_math,tiny_sql"
        )
    if len(names) > 1 and data is not None:
        raise UsageError(
            f"--data {data} is of one task, and --task names {len(names)}", hint="score one task at a time"
        )
    return [*names]


def _print_scores(artifact: Artifact, *, several: bool) -> None:
    from plr.cli.show import console
    from plr.report.metrics import foreign_note
    from plr.scoring.metric import Metric

    if several:
        console().print(f"[bold]{artifact.metrics['task']}[/bold]", highlight=False)
    for name, metric in artifact.metrics["metrics"].items():
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
        star = "*" if name == artifact.metrics["primary"] else " "
        note = foreign_note(Metric.recorded(name, metric))
        console().print(f" {star} {name:34} {value}{error}  (n = {metric['n']}){note}", highlight=False)
    for line in _remarks(artifact.metrics):
        console().print(f"   {line}", highlight=False)


def _remarks(result: JsonObject) -> Iterator[str]:
    """List the remarks that a reader of the numbers needs."""
    for name, kinds in result.get("outcomes", {}).items():
        yield f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    protocol = result["protocol"]
    if protocol["answers_cut"]:
        longest = protocol["generation"]["max_gen_toks"]
        yield f"{protocol['answers_cut']} of {result['n']} answers were cut at {longest} tokens (--max-new-tokens)"
    if "head" in result:
        yield f"the head is {result['head']['is']}"
    if result.get("seen_in_train"):
        yield f"{result['seen_in_train']} of {result['n']} rows stand in the train split too"
