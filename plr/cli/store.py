"""show, verify, gc, doctor: looking at the store and at the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from plr.cli.options import Json, lab
from plr.cli.root import app
from plr.errors import IntegrityError

if TYPE_CHECKING:
    from plr.core.artifact import SealedFolder
    from plr.core.store import Artifact

__all__: list[str] = []


Ref = Annotated[str | None, typer.Argument(help="Path, name or hash prefix; the latest if left out.")]


@app.command()
def show(
    ref: Ref = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw a base's output error over depth to this .svg file, and PNG beside it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one artifact: its step, inputs, metrics and where it was made; of a base how much of the 16-bit model it still is.

    Example: [bold]plr show 3fa9c1 --plot error.svg[/bold]
    """
    from rich.markup import escape

    from plr.cli.base import HANDLED, print_base
    from plr.cli.show import console, emit, print_files, size, span
    from plr.core.store import MANIFEST

    artifact = lab().store.find(ref, outside=True)
    artifact.check()
    drawn = [] if plot is None else _draw(artifact, plot)
    if as_json:
        files = {} if plot is None else {"plot": str(plot), "plots": [str(file) for file in drawn]}
        emit({"path": str(artifact.path), **files, **artifact.manifest})
        return
    record, out = artifact.record, console()

    def tell(line: str) -> None:
        out.print(line, highlight=False, markup=False)

    out.print(f"[bold]{record.kind}[/bold] {escape(str(artifact.path))}", highlight=False)
    tell(f"  fingerprint  {record.fingerprint}")
    tell(f"  made         {record.provenance['date']} in {span(record.seconds)}")
    for need in record.inputs:
        tell(f"  from         {need.kind} {need.label}  {need.fingerprint[:12]}")
    metrics = record.metrics
    if record.kind == "base":
        print_base(out, artifact)
        metrics = {name: value for name, value in metrics.items() if name not in HANDLED}
    if metrics.get("serves") is not None:
        print_restored(tell, metrics)
        metrics = {name: value for name, value in metrics.items() if name not in RESTORED}
    for name, value in _facts(metrics):
        tell(f"  {name:12} {value}")
    for name, file in record.files.items():
        tell(f"  file         {name}  {size(file.size)}")
    tell(f"  everything   {artifact.path / MANIFEST}")
    print_files(drawn, "  plot         ")


RESTORED = ("serves", "t", "scale", "curve", "candidates", "best", "verdict", "sentence", "chosen_on")
"""Metrics of a corrected restoration that are printed as a table."""


def print_restored(tell: Callable[[str], None], metrics: Mapping[str, Any]) -> None:
    """Print what a corrected restoration serves, and the points that it was chosen among."""
    from plr.report.figures.curves import curve_rows, restored_words

    tell(f"  serves       {restored_words(metrics)}")
    for candidate in metrics.get("candidates", []):
        right = "-" if candidate["exact"] is None else f"{100 * candidate['exact']:.1f} %"
        point = f"t {candidate['t']:g}, s {candidate['scale']:g}"
        tell(f"  candidate    {candidate['mode']:8} {point:14} right {right:>8}  loss {candidate['loss']:.4f}")
    for t, scale, loss, right in curve_rows(metrics):
        tell(f"  tried        t {t:5} s {scale:5} loss {loss}  right {right}")


def _draw(artifact: Artifact, file: Path) -> list[Path]:
    """Write the figure of a base's output errors; return its files.

    Raises:
        UsageError: no base, a base without measured errors, or no .svg file in a folder that is there.
    """
    from plr.bases.modules import modules_of
    from plr.errors import UsageError
    from plr.report.figures.bases import error_figure
    from plr.report.figures.write import write_figure

    if artifact.kind != "base":
        raise UsageError(f"{artifact.path.name} is no base: there is no output error to draw", hint="plr ls base")
    if file.suffix != ".svg" or not file.absolute().parent.is_dir():
        raise UsageError(f"--plot is {file}", expected="a .svg file in a folder that is there")
    figure = error_figure(modules_of(artifact.metrics), artifact.path.name.rpartition("-")[0])
    if figure is None:
        raise UsageError(
            f"{artifact.path.name} has no measured output error to draw",
            hint="errors are measured on calibration data: quantize with a method that takes some",
        )
    return write_figure(figure, file)


def _facts(metrics: Mapping[str, object]) -> list[tuple[str, str]]:
    """Select the metrics that are one number or a small record; lists are only counted."""
    facts: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, list):
            facts.append((name, f"{len(cast('list[object]', value))} entries"))
        elif isinstance(value, dict):
            record = cast("dict[str, object]", value)
            flat = {key: part for key, part in record.items() if not isinstance(part, list | dict)}
            facts.append((name, _words(flat, ".4g")))
            facts += [
                (f"  {key}", _words(cast("dict[str, object]", part)))
                for key, part in record.items()
                if isinstance(part, dict)
            ]
        else:
            facts.append((name, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return facts


def _words(record: Mapping[str, object], floats: str = "") -> str:
    return ", ".join(
        f"{key} {format(value, floats) if isinstance(value, float) else value}" for key, value in record.items()
    )


@app.command()
def verify(
    ref: Annotated[str | None, typer.Argument(help="One artifact; all of them if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Compare every file of the store with the hash it was committed with.

    Example: [bold]plr verify[/bold]
    """
    from rich.markup import escape

    from plr.cli.show import console, emit
    from plr.core.sources import copies

    store = lab().store
    artifacts = [store.find(ref, outside=True)] if ref else store.all()
    copied = [] if ref else copies(store.home)
    broken, spoilt = _broken(artifacts), _broken(copied)
    if as_json:
        emit({"checked": len(artifacts), "broken": broken, "copies": len(copied), "broken_copies": spoilt})
    else:
        for entry in (*broken, *spoilt):
            console().print("[red]broken[/red] " + escape(f"{entry['name']}: {entry['error']}"), highlight=False)
        for count, bad, what in ((len(artifacts), broken, "artifacts"), (len(copied), spoilt, "copies of sources")):
            if count or what == "artifacts":
                console().print(f"{count - len(bad)} of {count} {what} are as they were committed", highlight=False)
    if broken:
        raise IntegrityError(
            f"{len(broken)} of {len(artifacts)} artifacts are broken: {broken[0]['error']}",
            hint="delete the folder and run the command that made it again",
        )
    if spoilt:
        raise IntegrityError(
            f"{len(spoilt)} of {len(copied)} copies of sources are broken: {spoilt[0]['error']}",
            hint="plr gc removes them, and what needs one makes it again",
        )


def _broken(folders: Sequence[SealedFolder]) -> list[dict[str, str]]:
    """Compare every file of these folders with its hash; name those that are broken, and why."""
    broken: list[dict[str, str]] = []
    for folder in folders:
        try:
            folder.check()
        except IntegrityError as error:
            broken.append({"name": folder.path.name, "error": error.message})
    return broken


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Remove all copies of .gguf sources, those in use by an artifact too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove leftovers of killed runs (partial folders, checkpoints nothing works on) and spare copies of sources. Artifacts stay.

    Example: [bold]plr gc --dry-run[/bold]
    """
    from plr.cli.show import console, emit, size
    from plr.core.collect import Leftovers

    store = lab().store
    left = Leftovers.find(store.home)
    left.look_at_copies(store.all(), everything=sources)
    gone = [] if dry_run else left.remove()
    if as_json:
        found = [str(path) for path in left.folders]
        emit({"removed": [str(path) for path in gone], "found": found, "bytes": left.bytes, "left_alone": left.alone})
        return
    for path in left.folders if dry_run else gone:
        console().print(str(path), highlight=False, markup=False)
    for reason in left.alone:
        console(stderr=True).print(f"left alone: {reason}", highlight=False, markup=False)
    verb, count = ("would remove", len(left.folders)) if dry_run else ("removed", len(gone))
    console().print(f"{verb} {count} leftovers, {size(left.bytes)}", highlight=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can run: packages, device, memory, disk, compiler.

    Example: [bold]plr doctor[/bold]
    """
    from rich.markup import escape

    from plr.cli.doctor import examine
    from plr.cli.show import console, emit

    checks = examine(lab().store.home)
    if as_json:
        emit([{"name": c.name, "ok": c.ok, "found": c.found, "advice": c.advice} for c in checks])
        return
    for check in checks:
        mark = "[green]yes[/green]" if check.ok else "[yellow]no [/yellow]"
        console().print(
            f" {mark} {check.name:16} {check.found}" + (f"  [dim]{escape(check.advice)}[/dim]" if check.advice else "")
        )
