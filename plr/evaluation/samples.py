"""Records of a result by document, read back from its `samples_*.jsonl` (written by `plr.evaluation.records`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from plr.core.fingerprint import JsonObject

__all__ = ["document_of", "read_samples", "sample_scores"]


def read_samples(folder: Path) -> list[JsonObject]:
    """Read every record of the result in `folder`, in the order in which they were written."""
    records: list[JsonObject] = []
    for file in sorted(folder.glob("samples_*.jsonl")):
        with file.open(encoding="utf-8") as stream:
            records += [json.loads(line) for line in stream]
    return records


def document_of(row_id: str) -> str:
    """Return the id under which a result has the row `row_id`: the row's place in its source.

    >>> document_of("gsm8k-test-0012")
    '12'
    """
    return str(int(row_id.rpartition("-")[2]))


def sample_scores(folder: Path, metrics: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Map each metric to the score of each document by its id; None is a document without a score.

    A metric of all documents at once (a correlation) has no score of one: all of its documents are None.
    """
    records = read_samples(folder)
    return {name: {str(one["doc_id"]): one[name] for one in records} for name in metrics}
