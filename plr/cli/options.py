"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.lab import Lab
    from plr.store import Artifact

__all__ = ["Bits", "Data", "Device", "Json", "Model", "Offline", "Output", "Preset", "Set", "Task", "finish", "lab"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to standard output.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="embedded:tiny, a folder, a .gguf file, or ORG/NAME[@REVISION] of the hub.")
]
Bits = Annotated[int, typer.Option("--bits", "-b", help="Bit width of the base: 16, 8, 4, 3 or 2.")]
Task = Annotated[str | None, typer.Option("--task", "-t", help="Task to train on, or to be scored by.")]
Data = Annotated[str | None, typer.Option("--data", help="Local files instead of the hub: a folder or a file.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also copy the artifact to this folder.")]
Offline = Annotated[bool, typer.Option("--offline", help="Make no network call; use what is on this machine.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Preset = Annotated[str | None, typer.Option("--preset", help="Recipe: paper, or tiny (default for the embedded base).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. --set train.epochs=3.")]


def lab(device: str = "auto", offline: bool = False) -> Lab:
    from plr.lab import Lab

    return Lab(device=device, offline=offline)


def finish(step: Any, here: Lab, *, output: Path | None, as_json: bool) -> Artifact:
    """Make ``step`` with a progress display, copy it out, say where it lies.

    Raises:
        UsageError: ``output`` is there already; found out before any work.
    """
    from plr.cli.show import artifact_json, console, emit, watch
    from plr.steps import Plan

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"{output} exists and is not an empty folder", hint="choose another --output: nothing is overwritten"
        )
    with watch(Plan.of([step], here.store).missing, quiet=as_json) as watcher:
        artifact = here.make(step, on_event=watcher)
    if int(os.environ.get("RANK", "0")) > 0:
        return artifact  # of several processes under a launcher the first one speaks
    if output is not None:
        shutil.copytree(artifact.path, output, dirs_exist_ok=True)
    if as_json:
        emit(artifact_json(artifact) | ({"output": str(output)} if output else {}))
    else:
        console().print(f"[bold]{artifact.kind}[/bold] {output or artifact.path}", highlight=False)
    return artifact
