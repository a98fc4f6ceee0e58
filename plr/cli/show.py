"""Output of the commands: progress with time left, tables, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.core.specs import Step
from plr.core.store import Artifact
from plr.core.text import without_nan
from plr.engines.plan import Event

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Watcher", "artifact_json", "console", "emit", "print_files", "size", "span", "watch"]


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def emit(value: Any) -> None:
    """Print JSON to standard output."""
    value = without_nan(value)
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: a path that is no UTF-8
        text = json.dumps(value, indent=1, allow_nan=False)
    print(text)


def print_files(files: Iterable[Path], lead: str = "") -> None:
    """Print the paths of written files, and how to get PNG where a figure is there as SVG alone."""
    from plr.report.figures.write import PNG_HINT

    paths = list(files)
    for path in paths:
        console().print(f"{lead}{path}", highlight=False, markup=False)
    kinds = {path.suffix for path in paths}
    if ".svg" in kinds and ".png" not in kinds:
        console().print(PNG_HINT, highlight=False, markup=False)


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Build the value that `--json` prints of an artifact."""
    manifest = artifact.manifest
    keys = ("kind", "label", "fingerprint", "metrics", "seconds", "inputs")
    return {"path": str(artifact.path), **{key: manifest[key] for key in keys}}


def size(n: float) -> str:
    """Format bytes for people.

    >>> size(999), size(1_540_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def span(seconds: float) -> str:
    """Format seconds for people.

    >>> span(0.42), span(65), span(7300)
    ('0.4 s', '1:05', '2:01:40')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Watcher:
    """A progress display: one overall bar and one bar for each running step."""

    def __init__(self, progress: Any, steps: dict[str, Step], quiet: bool) -> None:
        self.progress = progress
        self.steps = steps
        self.quiet = quiet
        self.bars: dict[str, Any] = {}
        self.shares: dict[str, float] = {}
        total = sum(step.info.effort for step in steps.values())
        self.overall = progress.add_task("all steps", total=total) if len(steps) > 1 else None

    def __call__(self, event: Event) -> None:
        step = self.steps.get(event.fingerprint)
        if step is None:
            return
        if event.what == "started":
            self.bars[event.fingerprint] = self.progress.add_task(_line(step), total=None)
        elif event.what == "progress" and event.fingerprint in self.bars:
            self.progress.update(self.bars[event.fingerprint], completed=event.done, total=event.total)
            self._advance(event.fingerprint, step, event.done / event.total if event.total else 0.0)
        elif event.what in ("made", "found", "failed"):
            self._finish(event, step)

    def _advance(self, fingerprint: str, step: Step, share: float) -> None:
        """Move the overall bar to where `step` has done `share` of its work."""
        gained = share - self.shares.get(fingerprint, 0.0)
        if self.overall is not None and gained > 0:
            self.shares[fingerprint] = share
            self.progress.advance(self.overall, step.info.effort * gained)

    def _finish(self, event: Event, step: Step) -> None:
        from rich.markup import escape

        if event.fingerprint in self.bars:
            self.progress.remove_task(self.bars.pop(event.fingerprint))
        self._advance(event.fingerprint, step, 1.0)
        if event.what == "failed":
            reason = escape(event.error.partition("\n")[0])
            self.progress.console.print(f"[red]failed[/red]  {_line(step)}: {reason}")
        elif event.what == "made" and not self.quiet:
            self.progress.console.print(f"[green]made[/green]    {_line(step)}  [dim]{span(event.seconds)}[/dim]")


@contextmanager
def watch(steps: list[Step], *, quiet: bool = False) -> Generator[Watcher]:
    """Show the progress of `steps` on standard error; plain lines where that is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    ]
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield Watcher(progress, {step.fingerprint: step for step in steps}, quiet)


def _line(step: Step) -> str:
    """Describe a step in rich's markup: a name in it is text."""
    from rich.markup import escape

    return f"{step.info.verb:8} {escape(step.label)}"
