"""Write the files of a report: results.csv, table.md, report.html, compare.md, compare.svg."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plr.adapters.sparse.reading import SparseAdapter, sparse_adapters
from plr.core.files import write_atomic
from plr.core.provenance import provenance
from plr.core.specs import Quantize, Restore, Step
from plr.core.store import Artifact, Store
from plr.engines.plan import closure
from plr.report.advice import Advice, advice_json
from plr.report.bases import BaseGate
from plr.report.cells import ResultSet
from plr.report.compare import write_compare
from plr.report.figures.curves import Restored
from plr.report.html import report_html
from plr.report.results import contrasts, write_csv
from plr.report.table import table_md
from plr.study.cells import CellResult
from plr.study.costs import costs_of
from plr.study.study import Study

__all__ = ["write_advice", "write_report", "write_study"]


def write_study(study: Study, store: Store, folder: Path, failed: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Write the costs of the adapters (compare.md, compare.svg), results.csv, table.md and report.html; return the paths.

    `failed` has the reason of each step that failed, by fingerprint (`Outcome.failed`).
    """
    results = study.results(store, failed)
    steps = closure([cell.step for cell in study.cells])
    artifacts = {step.fingerprint: artifact for step in steps if (artifact := store.get(step)) is not None}
    stored = [(step, artifacts[step.fingerprint]) for step in steps if step.fingerprint in artifacts]
    costs = costs_of(study.cells, store)
    compared = write_compare(results, costs, folder, study.name) if study.config.adapters else {}
    return compared | write_report(
        results,
        folder,
        title=study.name,
        settings={**study.config.model_dump(mode="json", exclude={"runtime"}), "dtype": study.dtype},
        provenance=provenance(),
        timings=[{"kind": step.kind, "step": step.label, "seconds": one.manifest["seconds"]} for step, one in stored],
        # A base without a gate (an older plr, another maker) is left out.
        bases=[
            {"name": step.label, "gate": one.metrics["gate"]}
            for step, one in stored
            if isinstance(step, Quantize) and "gate" in one.metrics
        ],
        sparse=sparse_adapters(steps, store),
        restored=_restored(stored),
    )


def _restored(stored: Sequence[tuple[Step, Artifact]]) -> list[Restored]:
    """Select the restorations that were corrected."""
    return [
        {"name": step.label, "metrics": one.metrics}
        for step, one in stored
        if isinstance(step, Restore) and step.correction is not None
    ]


def write_advice(advice: Advice, store: Store, folder: Path) -> dict[str, Path]:
    """Write results.csv, table.md, report.html and advice.json, of the rows that certify; return the paths."""
    inquiry = advice.inquiry
    steps = closure([cell.step for cell in inquiry.cells])
    stored = [(step, artifact) for step in steps if (artifact := store.get(step)) is not None]
    paths = write_report(
        advice.cells,
        folder,
        title=f"Which base for {inquiry.adapter.label}?",
        settings={
            "adapter": inquiry.adapter.adapter.model_dump(mode="json"),
            "task": inquiry.task.model_dump(mode="json"),
            "rows": {"choosing": len(inquiry.rows.choosing), "certifying": len(inquiry.rows.certifying)},
            "dtype": inquiry.cells[0].step.dtype,
        },
        provenance=provenance(),
        timings=[{"kind": step.kind, "step": step.label, "seconds": one.manifest["seconds"]} for step, one in stored],
        bases=[
            {"name": step.label, "gate": one.metrics["gate"]}
            for step, one in stored
            if isinstance(step, Quantize) and "gate" in one.metrics
        ],
        restored=_restored(stored),
        advice=advice,
    )
    paths["json"] = folder / "advice.json"
    write_atomic(paths["json"], json.dumps(advice_json(advice), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return paths


def write_report(
    cells: Iterable[CellResult],
    folder: Path,
    *,
    title: str,
    settings: Mapping[str, object],
    provenance: Mapping[str, object],
    timings: Sequence[Mapping[str, object]],
    bases: Sequence[BaseGate] = (),
    sparse: Sequence[SparseAdapter] = (),
    restored: Sequence[Restored] = (),
    advice: Advice | None = None,
) -> dict[str, Path]:
    """Write the three files into `folder`, each whole or not at all, and return them as csv, table and html.

    `cells` come in the order in which models, tasks and adapters are to appear; failed ones belong among them. `bases`,
    `sparse`, `restored` and `advice`: see `report_html`.
    """
    results = ResultSet(cells)
    pairs = contrasts(results)
    paths = {"csv": folder / "results.csv", "table": folder / "table.md", "html": folder / "report.html"}
    table = table_md(results, pairs, advice)
    page = report_html(
        results,
        title=title,
        settings=settings,
        provenance=provenance,
        timings=timings,
        bases=bases,
        sparse=sparse,
        restored=restored,
        found=pairs,
        advice=advice,
    )
    write_csv(results.cells, paths["csv"])
    write_atomic(paths["table"], table)
    write_atomic(paths["html"], page)
    return paths
