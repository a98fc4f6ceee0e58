"""The question which base an adapter belongs on: its candidates, and rows cut into those that choose and those that certify.

Every candidate is scored once, on one draw of test rows. A part of the draw chooses among the candidates, the rest judges the
choice: a maximum over several noisy scores is too high on the rows that it was taken on. Rows of the validation split are not used;
the training of the adapter may have seen them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plr.core.modes import MODES, plain_mode
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, GivenAdapter, GivenBase, Quantize, Restore, Source, Step, TaskSpec, Train
from plr.core.store import Store
from plr.engines import Outcome, engines
from plr.engines.plan import Event, Plan
from plr.errors import DataError, UsageError
from plr.evaluation.samples import document_of
from plr.study.cells import Cell, CellResult, Measured, cell_result

__all__ = [
    "Inquiry",
    "RowSets",
    "base_words",
    "cell_of",
    "evaluated",
    "restricted",
    "row_sets",
    "served_bytes",
    "targets",
]

LEAST = 10
"""Rows that either part has at least: below, no interval says anything."""


@dataclass(frozen=True)
class RowSets:
    """Ids of the rows that choose, and of those that certify."""

    choosing: frozenset[str]
    certifying: frozenset[str]

    @property
    def limit(self) -> int:
        """Number of both together: the draw that is scored."""
        return len(self.choosing) + len(self.certifying)


@dataclass(frozen=True)
class Inquiry:
    """An adapter, a cell for each candidate (on all rows of both parts), and the two parts."""

    adapter: Train | GivenAdapter
    task: TaskSpec
    cells: Sequence[Cell]
    rows: RowSets

    @property
    def name(self) -> str:
        """Name of the adapter, fit for a folder."""
        return self.adapter.label.replace("/", "-")

    def plan(self, store: Store) -> Plan:
        return Plan.of([cell.step for cell in self.cells], store)

    def run(self, store: Store, runtime: Runtime, on_event: Callable[[Event], None] | None = None) -> Outcome:
        """Score every candidate that is not scored yet. One that fails stops no other."""
        return engines.get("local").run(self.plan(store), store, runtime, on_event or (lambda event: None))

    def results(self, store: Store, failed: Mapping[str, str]) -> list[CellResult]:
        """Read one result a candidate, on all rows of both parts.

        Raises:
            IntegrityError: a result is not as it was committed.
            DataError: a result is not of these rows.
        """
        found = [cell_result(cell, store.get(cell.step, hashes=True), failed) for cell in self.cells]
        ids = self.rows.choosing | self.rows.certifying
        for cell, result in zip(self.cells, found, strict=True):
            for scores in result.samples.values():
                if frozenset(scores) != ids:
                    shared = len(ids.intersection(scores))
                    raise DataError(
                        f"the result of {cell.label} has {len(scores)} rows, {shared} of the {len(ids)} drawn",
                        hint="the data changed while it ran: run the command again",
                    )
        return found


def targets(
    adapter: Train | GivenAdapter,
    widths: Sequence[int],
    modes: Sequence[str],
    restored: Callable[[int, str | None], Restore],
    *,
    merges: bool,
) -> list[Restore]:
    """List the candidates of an adapter: its own base, where that is known, and each of `widths` in the modes that apply.

    Args:
        adapter: the adapter in question.
        widths: widths l to serve on; that of its own base is a candidate in any case.
        modes: names of modes beside `keep`; one that does not fit a width or a base has no candidate there.
        restored: describes the adapter on l bits in a mode (None: the plain one).
        merges: whether the method can be merged into a base.

    Raises:
        UsageError: no candidate is left, or `restored` refuses one.
    """
    own, k = adapter.own_base, adapter.trained_bits
    found = [] if own is None else [restored(k, None)]
    plain = plain_mode(same_base=False)
    others = [name for name in modes if MODES[name].own_base and not MODES[name].plain and own is not None]
    found += [restored(k, name) for name in others if MODES[name].grid(k, k) and (merges or not MODES[name].checkpoint)]
    for ell in sorted({*widths}, reverse=True):
        for name in modes:
            mode = MODES[name]
            if name == plain:
                if own is None or ell != k:
                    found.append(restored(ell, None))
                continue
            if mode.own_base or not mode.fits(k, ell) or (mode.at(ell).checkpoint and not merges):
                continue
            if mode.both_bases and own is None:
                continue  # there is nothing to compare with
            found.append(restored(ell, name))
    if len(found) < 2:
        raise UsageError(
            f"{adapter.label} has {'one candidate' if found else 'no candidate'}: there is nothing to compare",
            expected="a width to serve on beside its own",
            hint="name others, e.g. --bits 16,8",
        )
    return found


def row_sets(task: TaskSpec, rows: int, choosing: int) -> RowSets:
    """Draw test rows and cut them into `choosing` that choose and `rows` that certify; a shorter split is cut in that proportion.

    Raises:
        DataError: a part would have fewer than 10 rows, or the data cannot be read.
    """
    from plr.tasks.data.rows import draw, load_split

    split = load_split(task, "test").examples
    total = min(len(split), rows + choosing)
    part = choosing if total == rows + choosing else round(total * choosing / (rows + choosing))
    if min(part, total - part) < LEAST:
        raise DataError(
            f"{part} of {len(split)} test rows would choose and {total - part} certify",
            expected=f"at least {LEAST} rows for each",
            hint="ask for more, --rows and --select-rows, or give more rows: --data",
        )
    seed = Evaluate.model_fields["limit_seed"].default
    first, every = (frozenset(document_of(row.id) for row in draw(split, n, seed)) for n in (part, total))
    return RowSets(first, every - first)


def cell_of(adapter: Train | GivenAdapter, target: Restore, step: Evaluate) -> Cell:
    """Name the cell of a candidate as a study would."""
    name, seed = (adapter.adapter.method, adapter.train.seed) if isinstance(adapter, Train) else (adapter.label, 0)
    model, task = target.base.model.title, step.task.name
    return Cell(model, task, name, adapter.trained_bits, target.base.bits, target.mode, seed, step)


def restricted(result: CellResult, ids: Collection[str]) -> CellResult:
    """Take a result on some of its rows; a metric that is one number of all rows (a correlation) is left out."""
    if result.failed:
        return result
    samples = {name: {doc: scores[doc] for doc in scores if doc in ids} for name, scores in result.samples.items()}
    samples = {name: scores for name, scores in samples.items() if any(value is not None for value in scores.values())}
    metrics = {name: replace(_measured(scores), metric=result.metric(name)) for name, scores in samples.items()}
    return replace(result, samples=samples, metrics=metrics)


def _measured(scores: Mapping[str, float | None]) -> Measured:
    values = [value for value in scores.values() if value is not None]
    n, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else None
    return Measured(value=mean, stderr=error, n=n)


def served_bytes(target: Restore, store: Store, *, offline: bool = False) -> int | None:
    """Count the bytes of weights that are served: base and adapter, or one checkpoint; None for a `.gguf` source.

    What a base holds unquantized counts two bytes a number, in whatever type it lies on disk.
    """
    from plr.bases.load import base_folder
    from plr.bases.look import tensors_of
    from plr.bases.resolve import model_path
    from plr.restoration.compensation import COMPENSATION
    from plr.restoration.served import as_served, served_adapter

    if target.is_checkpoint:
        return _weights(store.require(target).path.glob("*.safetensors"))
    files = served_adapter(target, store, offline=offline).glob("*.safetensors")
    adapter = _weights(file for file in files if file.name != COMPENSATION)
    base = as_served(target, store).base
    if isinstance(base, Quantize | GivenBase):
        folder = base_folder(base, store, offline=offline)
    elif base.model.kind == "gguf":
        return None
    else:
        folder = model_path(base.model, offline=offline)
    return adapter + sum(_bytes_at_16(file) for file in {*tensors_of(folder, base.label).values()})


def _weights(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _bytes_at_16(file: Path) -> int:
    from plr.bases.look import header_of

    total = 0
    for key, entry in header_of(file, file.name).items():
        start, end = entry["data_offsets"]
        floating = str(entry["dtype"]) in ("F64", "F32", "F16", "BF16") and key.endswith((".weight", ".bias"))
        total += 2 * math.prod(entry["shape"]) if floating else end - start
    return total


def evaluated(step: Step) -> Restore:
    """Return the restored adapter that a cell scores."""
    assert isinstance(step, Evaluate)
    assert isinstance(step.target, Restore)
    return step.target


def base_words(base: Source | Quantize | GivenBase) -> str:
    """Name how a base is made, for a table."""
    if isinstance(base, Source):
        return "source"
    return base.quantization.method if isinstance(base, Quantize) else f"{base.checkpoint.title} ({base.method})"
