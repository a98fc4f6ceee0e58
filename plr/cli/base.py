"""The part of `plr show` on a base: its bits, its quality against the 16-bit model, and its modules with the largest errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plr.bases.modules import Module, disk_bits, modules_of
from plr.core.fingerprint import JsonObject
from plr.core.store import Artifact
from plr.report.bases import GATE_HEAD, answers_text, gate_rows, severity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["HANDLED", "print_base"]

HANDLED = frozenset({"bits", "block_weights", "gate", "modules"})
"""The metrics of a base that are shown here; the others are shown as those of any artifact."""
WORST = 5
_COLOURS = {"ok": "green", "damaged": "yellow", "broken": "red", "unknown": "yellow"}


def print_base(out: Console, artifact: Artifact) -> None:
    """Print the bits, the gate and the modules; keys that an older plr did not write are left out."""
    metrics = artifact.metrics
    modules = modules_of(metrics)
    if "bits" in metrics:
        on_disk = disk_bits(artifact.path, modules)
        disk = "" if on_disk is None else f"; {on_disk:.3f} a weight on disk, scales and zero points included"
        _line(out, "bits", f"{metrics['bits']}{disk}")
    if share := metrics.get("block_weights"):
        total = share["quantized"] + share["dense"]
        rest = f"; {share['dense']:,} of {total:,} stay as they are" if share["dense"] else ""
        _line(out, "blocks", f"{share['quantized'] / total:.2%} of their weights are at {metrics['bits']} bits{rest}")
    if gate := metrics.get("gate"):
        _print_gate(out, gate)
    if modules:
        _print_modules(out, modules, artifact.manifest.get("step", {}).get("quantization", {}))


def _print_gate(out: Console, gate: JsonObject) -> None:
    verdict = str(gate.get("verdict", "not measured"))
    out.print(f"  {'gate':12} ", end="", highlight=False)
    out.print(verdict, style=f"bold {_COLOURS[severity(verdict)]}", highlight=False, markup=False)
    rows = gate_rows(gate)
    table = _table(*GATE_HEAD)
    for row in rows:
        if len(row) == len(GATE_HEAD):
            table.add_row(*row)
    if table.row_count:
        _print_table(out, table)
    for row in rows:
        if len(row) < len(GATE_HEAD):
            out.print("    " + "  ".join(row), highlight=False, markup=False)
    if answers := answers_text(gate):
        _line(out, "answers", f"loss {answers}")


def _print_modules(out: Console, modules: Sequence[Module], settings: JsonObject) -> None:
    measured = [(error, module) for module in modules if (error := module.number("error")) is not None]
    if measured:
        _line(out, "output error", f"relative, of {len(measured)} modules; rounding: to nearest on the same grid")
        table = _table("kind", "modules", "mean", "largest", "mean of rounding")
        for kind in dict.fromkeys(module.kind for _, module in measured):
            own = [(error, module) for error, module in measured if module.kind == kind]
            errors = [error for error, _ in own]
            rounded = [value for _, module in own if (value := module.number("rtn_error")) is not None]
            mean = f"{sum(rounded) / len(rounded):.3g}" if rounded else "-"
            table.add_row(kind, str(len(own)), f"{sum(errors) / len(errors):.3g}", f"{max(errors):.3g}", mean)
        _print_table(out, table)
        worst = sorted(measured, key=lambda one: -one[0])[:WORST]
        for index, (error, module) in enumerate(worst):
            _line(out, "" if index else "largest", f"{error:.3g}  {module.name}")
    else:
        _line(out, "modules", f"{len(modules)}; no output error was measured (no calibration data)")
    damps = [damp for module in modules if (damp := module.number("damp")) is not None]
    if damps:
        share = settings.get("damp_percent")
        of_mean = "" if share is None else f" ({100 * share:g} % of its mean)"
        _line(out, "damping", f"{min(damps):.3g} to {max(damps):.3g} on the Hessian's diagonal{of_mean}")


def _line(out: Console, name: str, text: str) -> None:
    out.print(f"  {name:12} {text}", highlight=False, markup=False)


def _table(first: str, *rest: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_table(out: Console, table: Table) -> None:
    from rich.padding import Padding

    out.print(Padding(table, (0, 0, 0, 4), expand=False), highlight=False)
