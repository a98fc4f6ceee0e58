"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plr.errors import UsageError
from plr.presets import preset_for
from plr.runtime import Runtime, default_home
from plr.specs import BITS, Step
from plr.store import Artifact, Store

__all__ = ["Bits", "Device", "Json", "Model", "Offline", "Output", "Preset", "Set", "copy_out", "finish", "study_of"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to standard output.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="embedded:tiny, a folder, a .gguf file, or ORG/NAME[@REVISION] of the hub.")
]
Bits = Annotated[int, typer.Option("--bits", "-b", help="Bit width of the base: 16, 8, 4, 3 or 2.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also copy the artifact to this folder.")]
Offline = Annotated[bool, typer.Option("--offline", help="Make no network call; use what is on this machine.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Preset = Annotated[str | None, typer.Option("--preset", help="Recipe: paper or tiny (default: tiny for the embedded base).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. --set train.epochs=3.")]


def study_of(
    model: str, *, task: str | None = None, preset: str | None, config: Path | None = None, overrides: list[str] | None, **parts: Any
) -> Any:
    """A study of one model and one task: every single command resolves its options as a study file would be."""
    from plr.config import load_yaml
    from plr.study import study_config

    given: dict[str, Any] = {"name": "command", "preset": preset or preset_for(model), "models": [model]}
    if config is not None:
        given |= load_yaml(config)
    given |= {key: value for key, value in parts.items() if value is not None}
    entry = {"name": task} if task else {"name": "tiny_math"} if "tasks" not in given else None
    if entry is not None:
        given["tasks"] = [entry]
    return study_config(given, str(config) if config else "options", tuple(overrides or ()))


def check_bits(bits: int, *, below_16: bool = False) -> int:
    """One of the widths plr knows.

    Raises:
        UsageError: any other number.
    """
    allowed = BITS[1:] if below_16 else BITS
    if bits not in allowed:
        raise UsageError(
            f"bits is {bits}",
            expected="one of " + ", ".join(map(str, allowed)),
            hint="16 bits is the source itself: nothing to quantize" if bits == 16 else None,
        )
    return bits


def finish(step: Step, runtime: Runtime, *, output: Path | None, as_json: bool) -> Artifact:
    """Make ``step`` with a progress display, copy it out, say where it lies."""
    from plr.cli.show import artifact_json, console, emit, watch
    from plr.steps import Plan, make

    store = Store(runtime.home)
    if output is not None:
        _check_free(output)
    with watch(list(Plan.of([step], store).missing), quiet=as_json) as watcher:
        artifact = make(step, store, runtime, watcher)
    if output is not None:
        copy_out(artifact, output)
    if as_json:
        emit(artifact_json(artifact) | ({"output": str(output)} if output else {}))
    else:
        console().print(f"[bold]{artifact.kind}[/bold] {output or artifact.path}", highlight=False)
    return artifact


def _check_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder", hint="choose another --output: nothing is overwritten")


def copy_out(artifact: Artifact, output: Path) -> None:
    import shutil

    _check_free(output)
    shutil.copytree(artifact.path, output, dirs_exist_ok=True)


def store_here() -> Store:
    return Store(default_home())
