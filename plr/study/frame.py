"""Results of a study as one tidy table: the rows of `results.csv`, as tuples and as a pandas DataFrame."""

# pyright: basic
# pandas comes without types.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plr.core.fingerprint import JsonObject
from plr.study.cells import CellResult, finite

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["CELL", "COLUMNS", "cells_frame", "samples_frame", "tidy_rows"]

CELL = ("model", "task", "adapter", "train_bits", "restore_bits", "mode", "seed")
COLUMNS = (*CELL, "metric", "value", "stderr", "n", "fingerprint")

Row = tuple[str, str, str, int, int, str, int, str, float | None, float | None, int, str]


def tidy_rows(cells: Iterable[CellResult]) -> list[Row]:
    """List one row a cell and metric, sorted; a failed cell is a row of its primary metric without value, n = 0."""
    rows: list[Row] = []
    for cell in cells:
        if cell.failed:
            rows.append((*cell.key, cell.primary, None, None, 0, cell.fingerprint))
            continue
        for name, metric in cell.metrics.items():
            value, stderr = _number(metric.value), _number(metric.stderr)
            rows.append((*cell.key, name, value, stderr, metric.n, cell.fingerprint))
    return sorted(rows, key=lambda row: (*row[:3], -row[3], -row[4], *row[5:8]))


def cells_frame(cells: Iterable[CellResult]) -> DataFrame:
    """Build the DataFrame of `tidy_rows`: the columns `COLUMNS`, NaN where a value is missing."""
    from pandas import DataFrame

    return DataFrame(tidy_rows(cells), columns=list(COLUMNS)).astype({"value": float, "stderr": float})


def samples_frame(cells: Iterable[CellResult], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> DataFrame:
    """Build the DataFrame of one row a cell and document, in the order of the cells.

    Args:
        cells: results of a study; failed ones have no rows.
        records: by fingerprint the records of a result; see `plr.evaluation.samples.read_samples`.

    Beside the columns of the cell stand `fingerprint`, `doc_id`, `prompt`, `target`, `response` (the text as generated), `answer`
    (what was read from it) and a column for each metric that scores single documents.
    """
    from pandas import DataFrame

    rows: list[JsonObject] = []
    names: dict[str, None] = {}
    for cell in cells:
        head = dict(zip(CELL, cell.key, strict=True))
        for one in records.get(cell.fingerprint, ()):
            scores = {name: one[name] for name in one["metrics"]}
            names |= dict.fromkeys(scores)
            rows.append({**head, "fingerprint": cell.fingerprint, **_document(one), **scores})
    frame = DataFrame(rows, columns=[*CELL, "fingerprint", *DOCUMENT, *names])
    return frame.astype(dict.fromkeys(names, float))


DOCUMENT = ("doc_id", "prompt", "target", "response", "answer")


def _document(record: Mapping[str, Any]) -> JsonObject:
    prompt = record["arguments"]["gen_args_0"]["arg_0"]
    response, answer = record["resps"][0][0], record["filtered_resps"][0]
    return dict(zip(DOCUMENT, (record["doc_id"], prompt, record["target"], response, answer), strict=True))


def _number(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else float(number)
