"""The command rm: artifacts that are not wanted any more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Json, lab
from plr.cli.root import app
from plr.errors import PlrError, UsageError

if TYPE_CHECKING:
    from plr.core.removal import Removal

__all__: list[str] = []


@app.command()
def rm(
    refs: Annotated[list[str] | None, typer.Argument(help="Paths, names or hash prefixes.")] = None,
    older: Annotated[
        str | None, typer.Option("--older", help="Those whose date on record is longer ago: 12h, 30d, 8w.")
    ] = None,
    unused: Annotated[
        bool,
        typer.Option("--unused", help="Bases and adapters from which no result and no restored adapter was made."),
    ] = False,
    with_dependents: Annotated[
        bool, typer.Option("--with-dependents", help="Also whatever in the store was made from them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can be asked.")] = False,
    as_json: Json = False,
) -> None:
    """Remove artifacts: by name, by age, or those that nothing needs. The same settings make them again, with the same hash.

    Shows first what goes, the bytes that are freed and what was made from it, then asks. An artifact from which others in the store
    were made is refused, or with --older and --unused passed over, unless --with-dependents takes those too. With --unused a
    result and a restored adapter always stay, and so does all they were made from; an adapter that was not scored yet does not.
    What a running command holds is passed over and named. Leftovers of killed runs: plr gc.

    Example: [bold]plr rm --unused --older 30d --dry-run[/bold]
    """
    from plr.cli.show import console, emit, size
    from plr.core.removal import Removal

    plan = Removal.plan(lab().store, refs or [], older=older, unused=unused, with_dependents=with_dependents)
    if not as_json:
        _show(plan)
    if plan.artifacts and not dry_run:
        _ask(plan, yes, as_json)
        already = len(plan.alone)
        plan.remove()
        if not as_json:
            _say(plan.alone[already:])
    if as_json:
        found = [{"path": str(a.path), "bytes": plan.sizes[a.path]} for a in plan.artifacts]
        emit(
            {
                "removed": [str(path) for path in plan.gone],
                "found": found,
                "bytes": plan.bytes if dry_run else plan.freed,
                "left_alone": plan.alone,
            }
        )
    else:
        verb, count, bytes_ = (
            ("would remove", len(plan.artifacts), plan.bytes) if dry_run else ("removed", len(plan.gone), plan.freed)
        )
        console().print(f"{verb} {count} artifacts, {size(bytes_)}", highlight=False)
    if plan.left and not dry_run:
        raise PlrError(f"{len(plan.left)} of {len(plan.named)} artifacts were not removed: {plan.alone[-1]}")


def _show(plan: Removal) -> None:
    from plr.cli.show import console, size

    for artifact in plan.artifacts:
        path = artifact.path
        why = "  (made from one of the others)" if path in plan.dependents else ""
        console().print(
            f"{path.parent.name:8}  {path.name}  {size(plan.sizes[path])}{why}", highlight=False, markup=False
        )
    _say(plan.alone)


def _say(reasons: list[str]) -> None:
    from plr.cli.show import console

    for reason in reasons:
        console(stderr=True).print(f"left alone: {reason}", highlight=False, markup=False)


def _ask(plan: Removal, yes: bool, as_json: bool) -> None:
    """Ask on a terminal whether what was shown may go.

    Raises:
        UsageError: nobody can be asked.
    """
    from plr.cli.show import size

    if yes:
        return
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            f"nothing was removed: {len(plan.artifacts)} artifacts, {size(plan.bytes)}, would go, and nobody can be asked",
            expected="--yes, or a terminal",
            hint="look with --dry-run, then add --yes",
        )
    if not typer.confirm(f"remove {len(plan.artifacts)} artifacts, {size(plan.bytes)}?"):
        print("nothing was removed")
        raise typer.Exit(1)
