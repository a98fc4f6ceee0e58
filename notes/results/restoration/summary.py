"""Summarize a recorded study of restoration: `python summary.py STUDY.yaml FOLDER [KEY=VALUE ...]`, on the store of `PLR_HOME`.

In every cell (task, k, l, training) each mode is compared with `keep` of the same training, on the same test rows: the mean
difference over seeds, and its one-sided 95 % bound from a bootstrap of seeds and rows. Holm corrects the tests of "worse by a
point" over all cells of a mode. Pooled over cells, each mode is compared with the better of keep and plain restoring of its cell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plr.core.store import Store
from plr.stats import holm
from plr.study import Study, load_study

RESAMPLES = 4000
MARGIN = 0.01


def scores(study: Study, store: Store, metric: str | None) -> dict[tuple[Any, ...], dict[int, dict[str, float]]]:
    """Score of each row, by (task, adapter, k, l, mode) and seed; a loss with its sign turned, so that more is better."""
    found: dict[tuple[Any, ...], dict[int, dict[str, float]]] = {}
    for one in study.results(store):
        if one.failed:
            print("not there:", one.key, one.error, file=sys.stderr)
            continue
        name = metric or one.primary
        rows = {doc: value for doc, value in one.samples.get(name, {}).items() if value is not None}
        if not rows:  # a correlation, say: it is none of rows
            print(f"left out: {one.key}: {name} has no value of a row", file=sys.stderr)
            continue
        sign = one.metric(name).sign  # of a loss less is more
        place = (one.task, one.adapter, one.train_bits, one.restore_bits, one.mode)
        found.setdefault(place, {})[one.seed] = {doc: sign * value for doc, value in rows.items()}
    return found


def common(a: dict[int, dict[str, float]], b: dict[int, dict[str, float]]) -> np.ndarray[Any, Any]:
    """Scores of both by seed and row: [2, seeds, rows] of the seeds and rows that both have."""
    seeds = sorted(a.keys() & b.keys())
    rows = sorted(set.intersection(*({*a[s]} & {*b[s]} for s in seeds)))
    if not rows:
        raise SystemExit(f"no row of the {len(seeds)} common seeds has a value on both sides")
    return np.array([[[one[s][row] for row in rows] for s in seeds] for one in (a, b)])


def bootstrap(cells: Sequence[np.ndarray[Any, Any]], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Means of resampled cells, seeds within a cell, and rows (the same ones for all seeds of a cell): [resamples]."""
    means = np.zeros(RESAMPLES)
    for i in range(RESAMPLES):
        picked = rng.integers(len(cells), size=len(cells)) if len(cells) > 1 else [0]
        total = 0.0
        for index in picked:
            cell = cells[index]
            seeds = rng.integers(cell.shape[0], size=cell.shape[0])
            rows = rng.integers(cell.shape[1], size=cell.shape[1])
            total += cell[np.ix_(seeds, rows)].mean()
        means[i] = total / len(picked)
    return means


def summarize(study: Study, store: Store, metric: str | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found = scores(study, store, metric)
    lines: list[dict[str, Any]] = []
    pooled: dict[tuple[str, str], list[np.ndarray[Any, Any]]] = {}
    for (task, adapter, k, ell, mode), at in sorted(found.items(), key=str):
        keep = found.get((task, adapter, k, k, "keep"))
        if keep is None or k == 16 or mode == "keep":
            continue
        if not keep.keys() & at.keys():
            continue
        kept, served = common(keep, at)
        change = served - kept
        means = bootstrap([change], rng)
        plain = found.get((task, adapter, k, ell, "restore"))
        line: dict[str, Any] = {
            "task": task, "training": adapter, "k": k, "l": ell, "mode": mode, "seeds": int(change.shape[0]),
            "n": int(change.shape[1]), "keep": float(kept.mean()), "value": float(served.mean()),
            "against_keep": float(change.mean()), "bound": float(np.quantile(means, 0.05)),
            "p_worse_by_a_point": float(((means <= -MARGIN).sum() + 1) / (RESAMPLES + 1)),
        }  # fmt: skip
        if plain is not None:
            kept, restored = common(keep, plain)
            better = max(0.0, float((restored - kept).mean()))
            line["against_the_better"] = float(change.mean()) - better
            restored, served = common(plain, at)
            pooled.setdefault((adapter, mode), []).append(change if better == 0.0 else served - restored)
        lines.append(line)
    for mode in {line["mode"] for line in lines}:
        of_mode = [line for line in lines if line["mode"] == mode]
        for line, p in zip(of_mode, holm([line["p_worse_by_a_point"] for line in of_mode]), strict=True):
            line["holm"] = p
    totals = []
    for (adapter, mode), cells in sorted(pooled.items()):
        means = bootstrap(cells, rng)
        mine = [line for line in lines if (line["training"], line["mode"]) == (adapter, mode)]
        totals.append(
            {
                "training": adapter,
                "mode": mode,
                "cells": len(cells),
                "gain_over_the_better": float(np.mean([cell.mean() for cell in cells])),
                "low": float(np.quantile(means, 0.025)),
                "high": float(np.quantile(means, 0.975)),
                "not_worse_than_keep": sum(line["holm"] < 0.05 for line in mine),
            }
        )
    return {"metric": metric or "primary", "margin": MARGIN, "resamples": RESAMPLES, "cells": lines, "pooled": totals}


CELLS = ("task", "training", "k", "l", "mode", "keep", "served", "difference", "bound", "p (worse by 1), Holm")
POOLED = ("training", "mode", "cells", "gain", "95 % interval", "cells shown no worse than keep")


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""

    def points(value: float) -> str:
        return f"{100 * value:+.1f}"

    cells = [
        (
            *(c[key] for key in ("task", "training", "k", "l", "mode")),
            f"{100 * c['keep']:.1f}",
            f"{100 * c['value']:.1f}",
            points(c["against_keep"]),
            points(c["bound"]),
            f"{c['holm']:.3g}",
        )
        for c in summary["cells"]
    ]
    pooled = [
        (
            p["training"],
            p["mode"],
            p["cells"],
            points(p["gain_over_the_better"]),
            f"{points(p['low'])} to {points(p['high'])}",
            p["not_worse_than_keep"],
        )
        for p in summary["pooled"]
    ]
    first = (
        f"Metric: {summary['metric']}. Differences in points (of a loss in 0.01 nats a token, its sign turned: more is better); "
        "bound: one-sided 95 %, seeds and rows resampled."
    )
    second = "Pooled over cells: gain over the better of keep and restore of each cell."
    return "\n\n".join([first, markdown(CELLS, cells), second, markdown(POOLED, pooled)]) + "\n"


if __name__ == "__main__":
    file, folder, *overrides = sys.argv[1:]
    metric = next((text.removeprefix("metric=") for text in overrides if text.startswith("metric=")), None)
    study = Study(load_study(Path(file), tuple(text for text in overrides if not text.startswith("metric="))))
    result = summarize(study, Store(study.runtime().home), metric)
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = "summary" if metric is None else "summary-" + metric.replace(",", "-")
    (Path(folder) / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (Path(folder) / f"{name}.md").write_text(table(result))
    print(table(result))
