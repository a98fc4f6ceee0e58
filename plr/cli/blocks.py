"""The command blocks: the blocks that sparse adapters chose, their overlap, and their sum on one base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plr.cli.options import Json, lab
from plr.cli.root import app
from plr.errors import UsageError

if TYPE_CHECKING:
    from plr.adapters.sparse.algebra import Overlap
    from plr.adapters.sparse.reading import DepthRow, ModuleRow, SparseAdapter
    from plr.core.store import Artifact, Store

__all__: list[str] = []

KINDS = ("adapter", "restored")


@app.command()
def blocks(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(help="Sparse adapters: path, name or hash prefix, or a folder of PEFT; the latest if left out."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Draw the block scores to this .svg file, and PNG beside it; of several, one each."
        ),
    ] = None,
    compose_to: Annotated[
        Path | None,
        typer.Option("--compose", help="Write the exact sum of the adapters, one sparse adapter, to this folder."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the adapters in the sum, with commas; 1 each if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which blocks a sparse adapter chose, layer by layer; of several, where they overlap, and their sum.

    Wanted: blocks above the score that k of the initial draws are expected to reach. Tried: blocks that have had a slot.

    Example: [bold]plr blocks 3fa9c1 8be02d -o blocks.svg --compose both[/bold]
    """
    from plr.adapters.sparse.algebra import compose, overlaps
    from plr.adapters.sparse.reading import depth_rows, module_rows
    from plr.cli.show import emit

    if weights is not None and compose_to is None:
        raise UsageError("--weights without --compose: there is nothing to weigh", hint="add --compose FOLDER")
    if output is not None and (output.suffix != ".svg" or not output.absolute().parent.is_dir()):
        raise UsageError(f"--output is {output}", expected="a .svg file in a folder that is there")
    read = [_adapter(ref) for ref in adapters or [None]]
    pairs = overlaps(read)
    files = [] if output is None else _draw(read, output)
    composed = None if compose_to is None else compose(read, compose_to, _numbers(weights))
    rows = [(adapter, module_rows(adapter)) for adapter in read]
    if as_json:
        several = [
            {
                "adapter": a.name,
                "path": str(a.folder),
                "energy": a.energy,
                "depth": depth_rows(modules),
                "modules": modules,
            }
            for a, modules in rows
        ]
        emit({"adapters": several, "overlap": pairs, "files": [str(file) for file in files], "composed": composed})
        return
    for adapter, modules in rows:
        _print_adapter(adapter, modules, depth_rows(modules))
    _print_rest(pairs, files, composed)


def _adapter(ref: str | None) -> SparseAdapter:
    from plr.adapters.sparse.reading import CONFIG, read_sparse
    from plr.core.store import MANIFEST

    if ref is not None and (Path(ref) / CONFIG).is_file() and not (Path(ref) / MANIFEST).is_file():
        return read_sparse(Path(ref))
    store = lab().store
    artifact = (_latest(store) if ref is None else None) or store.find(ref, KINDS, outside=True)
    return read_sparse(artifact.use(), str(artifact.manifest["label"]))


def _latest(store: Store) -> Artifact | None:
    """Find the latest artifact with blocks; None if there is none."""
    from plr.adapters.sparse.reading import CONFIG

    for artifact in reversed(store.all()):
        config = artifact.path / CONFIG
        if (
            artifact.path.parent.name in KINDS
            and config.is_file()
            and json.loads(config.read_text())["peft_type"] == "SPARSE"
        ):
            return artifact
    return None


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise UsageError(f"--weights is {weights!r}", expected="numbers with commas between them: 1,0.5") from None


def _draw(adapters: list[SparseAdapter], output: Path) -> list[Path]:
    from plr.report.figures.blocks import blocks_figure
    from plr.report.figures.write import write_figure

    numbered = [output.with_name(f"{output.stem}-{index}.svg") for index in range(1, len(adapters) + 1)]
    files = [output] if len(adapters) == 1 else numbered
    drawn = zip(adapters, files, strict=True)
    return [path for adapter, file in drawn for path in write_figure(blocks_figure(adapter), file)]


def _print_adapter(adapter: SparseAdapter, rows: list[ModuleRow], depths: list[DepthRow]) -> None:
    from plr.cli.show import console
    from plr.report.figures.blocks import described

    out = console()
    out.print(f"[bold]sparse[/bold] {adapter.name}", highlight=False)
    out.print(described(adapter), highlight=False)
    table = _table("layer", "module", "blocks", "k", "wanted", "tried", "lowest chosen", "level", "energy", "share")
    for row in rows:
        size = f"{row['n']} x {row['m']}"
        counts = (str(row["k"]), _count(row["wanted"]), _count(row["tried"]))
        scores = (_number(row["threshold"]), _number(row["level"]))
        energy = (_number(row["energy"]), f"{100 * row['energy_share']:.1f} %")
        table.add_row(
            str(row["layer"]), row["kind"], size, *counts, *scores, *energy, style="bold" if row["restless"] else None
        )
    out.print(table)
    table = _table("depth", "module", "modules", "mean k", "wanted", "tried", "restless", "energy")
    for row in depths:
        means = (_count(row[key]) for key in ("k", "wanted", "tried"))
        table.add_row(
            row["depth"],
            row["kind"],
            str(row["modules"]),
            *means,
            str(row["restless"]),
            f"{100 * row['energy_share']:.1f} %",
        )
    out.print(table)


def _print_rest(pairs: list[Overlap], files: list[Path], made: dict[str, object] | None) -> None:
    from plr.cli.show import console, print_files

    out = console()
    for pair in pairs:
        out.print(f"[bold]overlap[/bold] {pair['first']} and {pair['second']}", highlight=False)
        cosine = "no block is shared" if pair["cosine"] is None else f"cosine there {pair['cosine']:+.3f}"
        lines = (
            f"{pair['shared_blocks']} blocks in both, Jaccard {pair['jaccard']:.3f} (by chance {pair['jaccard_by_chance']:.3f})",
            f"{100 * pair['shared_energy_first']:.1f} % and {100 * pair['shared_energy_second']:.1f} % of their energy; {cosine}",
            f"interference {pair['interference']:+.3f} (0: they do not meet; 1: equal; -1: opposite)",
        )
        for line in lines:
            out.print(f"  {line}", highlight=False)
        if pair["same_start"]:
            out.print(
                "  both began from the same draw of scores: what they share is mostly that draw. Train with other seeds to"
            )
            out.print("  see what the tasks choose.")
    print_files(files)
    if made is not None:
        text = f"the sum of {made['adapters']} adapters: {made['blocks']} blocks in {made['modules']} modules"
        out.print(f"[bold]composed[/bold] {made['folder']}  {text}", highlight=False)


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(*head: str) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    return table
