"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from plr.core.fingerprint import JsonObject
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.core.runtime import Dtype
    from plr.core.specs import Step
    from plr.core.store import Artifact
    from plr.lab import Lab, LabOptions

__all__ = [
    "Columns",
    "Data",
    "Device",
    "GivenModel",
    "Json",
    "Model",
    "Offline",
    "Output",
    "Preset",
    "Set",
    "Source",
    "Task",
    "TrainedOn",
    "columns_of",
    "finish",
    "finish_all",
    "lab",
    "store_to_read",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to standard output.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="embedded:tiny, a folder, a .gguf file, or ORG/NAME[@REVISION] of the hub.")
]
GivenModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The base of an adapter of another tool, where not the one that it names."),
]
Source = Annotated[
    str | None, typer.Option("--source", help="The 16-bit model of a quantized checkpoint that does not name it.")
]
TrainedOn = Annotated[
    str | None,
    typer.Option(
        "--trained-on",
        help="What an adapter of another tool was trained on: 16, nf4, nf4-double-quant, int8, unknown, or a quantized checkpoint.",
    ),
]
Task = Annotated[str | None, typer.Option("--task", "-t", help="Task to train on, or to be scored by.")]
Columns = Annotated[
    str | None,
    typer.Option("--columns", help="Fields under other names in the data: question=Prompt,answer=Completion."),
]
Data = Annotated[str | None, typer.Option("--data", help="Local files instead of the hub: a folder or a file.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also copy the artifact to this folder.")]


def _offline(asked: bool) -> bool:
    """Keep every library of the process and its workers off the network."""
    if asked:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return asked


Offline = Annotated[
    bool,
    typer.Option("--offline", callback=_offline, help="Make no network call; use what is on this machine."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Recipe: paper, best, or tiny (default for the embedded base).")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. --set train.epochs=3.")]


def lab(
    device: str = "auto",
    offline: bool = False,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    low_memory: bool = False,
    dtype: Dtype = "auto",
) -> Lab:
    """Open the lab of a command. What `config` and `--set` say of `runtime` holds where no option of its own says otherwise."""
    from plr.core.config import apply_overrides, load_yaml
    from plr.lab import Lab

    own = tuple(override for override in overrides if override.partition("=")[0].strip().partition(".")[0] == "runtime")
    written = apply_overrides(load_yaml(config) if config is not None else {}, own).get("runtime")
    settings = dict(cast("dict[str, object]", written)) if isinstance(written, dict) else {}
    options = {"device": device, "offline": offline, "low_memory": low_memory, "dtype": dtype}
    settings |= {key: value for key, value in options.items() if value not in (False, "auto")}
    return Lab(**cast("LabOptions", settings))  # Runtime refuses what is none of them


def store_to_read() -> Path | None:
    """Return the store for a command that makes no artifact, and no store either: None if there is none yet."""
    from plr.core.runtime import default_home

    home = default_home()
    return home if home.is_dir() else None


def columns_of(text: str | None) -> dict[str, str] | None:
    """Parse `question=Prompt,answer=Completion`: the fields of a task, and the columns they are read from.

    Raises:
        UsageError: a part without `=`, or a field that is named twice.
    """
    if text is None:
        return None
    columns: dict[str, str] = {}
    for part in text.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column) or field in columns:
            raise UsageError(
                f"--columns is {text!r}: {part.strip()!r} is {'named twice' if field in columns else 'no FIELD=COLUMN'}",
                expected="each field of the task once, and the column it is read from: question=Prompt,answer=Completion",
            )
        columns[field] = column
    return columns


def finish(step: Step, here: Lab, *, output: Path | None, as_json: bool) -> Artifact:
    """Make `step` with a progress display, copy it out, say where it lies.

    Raises:
        UsageError: `output` is there already; found out before any work.
    """
    return finish_all([step], here, output=output, as_json=as_json)[0]


def finish_all(steps: Sequence[Step], here: Lab, *, output: Path | None, as_json: bool) -> list[Artifact]:
    """Make all of `steps` in one go; of several, `output` gets a folder for each and `--json` prints a list.

    Raises:
        UsageError: see `finish`.
    """
    from rich.markup import escape

    from plr.cli.show import artifact_json, console, emit, watch
    from plr.core.launcher import is_follower
    from plr.engines.plan import Plan

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"{output} exists and is not an empty folder", hint="choose another --output: nothing is overwritten"
        )
    with watch(Plan.of(steps, here.store).missing, quiet=as_json) as watcher:
        artifacts = here.make_all(steps, on_event=watcher)
    if is_follower():
        return artifacts  # of several processes under a launcher the first one speaks
    values: list[JsonObject] = []
    for artifact in artifacts:
        folder = output / artifact.path.name if output is not None and len(steps) > 1 else output
        if folder is not None:
            shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        values.append(artifact_json(artifact) | ({"output": str(folder)} if folder else {}))
        if not as_json:
            console().print(f"[bold]{artifact.kind}[/bold] {escape(str(folder or artifact.path))}", highlight=False)
    if as_json:
        emit(values[0] if len(steps) == 1 else values)
    return artifacts
