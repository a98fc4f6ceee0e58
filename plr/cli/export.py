"""The commands export, card and push: what plr made, for other tools and for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Columns, Data, Device, GivenModel, Json, Offline, Source, TrainedOn, columns_of, lab
from plr.cli.root import app

if TYPE_CHECKING:
    from plr.lab import ExportOptions

__all__: list[str] = []

Ref = Annotated[
    str | None,
    typer.Argument(
        help="Base, adapter or restored adapter, the latest if left out; or a PEFT folder, or ORG/NAME of the hub."
    ),
]


@app.command()
def export(
    ref: Ref = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.")] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="peft, merged, gptq, compressed-tensors, gguf-lora, or one of another package."
        ),
    ] = "merged",
    bits: Annotated[
        int | None,
        typer.Option("--bits", "-b", help="Put an adapter on a base of these bits first; its own if left out."),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="In this mode, as plr restore.")] = None,
    model: GivenModel = None,
    source: Source = None,
    trained_on: TrainedOn = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task that an adapter of another tool was trained on.")
    ] = None,
    data: Data = None,
    columns: Columns = None,
    shard_size: Annotated[
        float | None, typer.Option("--shard-size", min=0.000001, help="Largest file of weights in GB; 5 if left out.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write an earlier export anew; nothing else is overwritten.")
    ] = False,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write what plr made in the format of another tool, with a model card: an adapter, a merged or a quantized checkpoint.

    Example: [bold]plr export 3fa9c1 --bits 16 --format merged -o served[/bold]
    """
    from plr.cli.show import console, emit, size
    from plr.errors import UsageError

    if output is None:
        raise UsageError("no folder was given", expected="--output FOLDER", hint="plr export --help")
    here = lab(device, offline)
    options: ExportOptions = {
        "bits": bits,
        "mode": mode,
        "model": model,
        "source": source,
        "trained_on": trained_on,
        "task": task,
        "data": data,
        "columns": columns_of(columns),
        "force": force,
        "shard_gb": shard_size,
    }
    done = here.export(ref, output, format_, **options)
    files = done.record["files"]
    total = sum(entry["size"] for entry in files.values())
    if as_json:
        emit({"path": str(done.folder)} | {key: done.record[key] for key in ("format", "fingerprint", "made", "files")})
    else:
        console().print(f"[bold]{format_}[/bold] {done.folder}  {len(files)} files, {size(total)}", highlight=False)


@app.command()
def card(
    ref: Annotated[
        str | None, typer.Argument(help="Base, adapter, restored adapter or result; the latest if left out.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write README.md and .eval_results/ into this folder; earlier cards are replaced.",
        ),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write the model card of an artifact: what it is, its scores with intervals and n, and the commands that make it again.

    Example: [bold]plr card 3fa9c1 -o served[/bold]
    """
    from plr.cli.show import emit

    written = lab("auto", offline).card(ref, output)
    if as_json:
        emit({"card": written.text, "files": [str(file) for file in written.files], "left_out": list(written.left_out)})
    elif output is None:
        print(written.text, end="")
    else:
        for file in written.files:
            print(file)
        for reason in written.left_out:
            print(f"no .eval_results for {reason}")


@app.command()
def push(
    ref: Annotated[
        str, typer.Argument(help="A folder that plr export wrote, or an artifact, which is exported first.")
    ],
    name: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; made if it is not there.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", "-f", help="Of an artifact: peft, merged or gptq, whichever it is, if left out."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to commit to; main if left out.")] = None,
    device: Device = "auto",
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Send a folder or an artifact to the Hugging Face Hub as one commit, with its card. Log in first: hf auth login.

    Example: [bold]plr push served my-org/my-adapter --private[/bold]
    """
    from plr.cli.show import console, emit

    done = lab(device, offline).push(ref, name, form=format_, private=private, revision=revision)
    if as_json:
        emit({"url": done.url, "commit": done.commit, "files": list(done.files)})
    else:
        console().print(
            f"[bold]pushed[/bold] {len(done.files)} files to {done.url} at {done.commit[:12]}", highlight=False
        )
