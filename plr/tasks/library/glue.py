"""GLUE (Wang et al. 2019): eight tasks for a classification head, under the names and with the field names of the hub's data set.

=============  =================  ======================  ==============================================
task           rows (train/test)  texts                   metrics, the headline one first
=============  =================  ======================  ==============================================
`glue_cola`  8,551 / 1,043      sentence                `mcc` (Matthews), `acc`
`glue_sst2`  67,349 / 872       sentence                `acc`
`glue_mrpc`  3,668 / 408        sentence1, sentence2    `acc`, `f1`
`glue_qqp`   363,846 / 40,430   question1, question2    `acc`, `f1`
`glue_stsb`  5,749 / 1,500      sentence1, sentence2    `pearson`, `spearman`
`glue_mnli`  392,702 / 9,815    premise, hypothesis     `acc`, on the matched rows
`glue_qnli`  104,743 / 5,463    question, sentence      `acc`
`glue_rte`   2,490 / 277        sentence1, sentence2    `acc`
=============  =================  ======================  ==============================================

`glue_mnli_mismatched` is MNLI scored on the mismatched rows (9,832). WNLI is left out, as it is in the LoRA paper.

Splits. The labels of GLUE's own test sets are not published, so **the official validation split is the test split here**, as in
the papers. It must not select anything: the validation split, by which checkpoints and learning rates are chosen, is cut out of
train (500 rows, or a tenth if that is less; seeded; equal texts stay together). A local folder reads the same way: its
`validation.jsonl` (or `dev`, `validation_matched`) is the test split, and a `test.jsonl` beside it is not read.

Some rows stand in the official train and validation splits alike. They are kept, so that numbers mean what they mean elsewhere,
and counted in each result (`seen_in_train`).

A real row, first of MRPC's validation split, label 1 (equivalent)::

    He said the foodservice pie business doesn 't fit the company 's long-term growth strategy .
    " The foodservice pie business does not fit our long-term growth strategy .
"""

from __future__ import annotations

import math

from plr.tasks.base import tasks
from plr.tasks.classification import Classification
from plr.tasks.data.hub import HubData
from plr.tasks.types import Fields, HeadSpec, TaskData

__all__ = ["GLUE", "Glue"]

HUB = "nyu-mll/glue"
HIGHEST = 5.0
"""The top of STS-B's scale; the bottom is 0."""


class Glue(Classification):
    """One task of GLUE; `names` are its labels, none for STS-B's number."""

    version = 1
    official_splits = True

    def __init__(
        self,
        config: str,
        fields: tuple[str, ...],
        names: tuple[str, ...],
        metrics: tuple[str, ...],
        *,
        suffix: str = "",
    ) -> None:
        self.name, self.names = f"glue_{config}{suffix}", names  # type: ignore[misc]
        self.fields = self.text_fields = fields  # type: ignore[misc]
        self.metrics, self.primary = metrics, metrics[0]  # type: ignore[misc]
        theirs = f"validation{suffix or '_matched'}" if config == "mnli" else "validation"
        self.hub = HubData(HUB, config=config, splits={"train": "train", "test": theirs})  # type: ignore[misc]
        scored = (theirs, "validation", "valid", "val", "dev")
        self.stems = {"train": "train", **dict.fromkeys(scored, "test")}  # type: ignore[misc]

    def labels(self, data: TaskData | None = None) -> tuple[str, ...]:
        return self.names

    def label(self, row: Fields, head: HeadSpec | None = None) -> int | float:
        return int(float(row["label"])) if self.names else float(row["label"])

    def target(self, row: Fields) -> str:
        return self.names[int(float(row["label"]))] if self.names else f"{float(row['label']):g}"

    def problem(self, row: Fields) -> str | None:
        try:
            label = float(row.get("label", ""))
        except (TypeError, ValueError, OverflowError):
            return f"the label is {repr(row.get('label'))[:80]}"
        if self.names and label not in range(len(self.names)):
            hidden = " (a label of -1 is not published)" if label == -1 else ""
            return f"the label is {row['label']!r}, not one of 0 to {len(self.names) - 1}{hidden}"
        if not self.names and not (math.isfinite(label) and 0 <= label <= HIGHEST):
            return f"the label is {row['label']!r}, not a number from 0 to {HIGHEST:g}"
        return None


_SENTENCES = ("sentence1", "sentence2")
_ENTAILS = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
GLUE = {
    task.name: tasks.register(task.name)(task)
    for task in (
        Glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc", "acc")),
        Glue("sst2", ("sentence",), ("negative", "positive"), ("acc",)),
        Glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), ("acc", "f1")),
        Glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("acc", "f1")),
        Glue("stsb", _SENTENCES, (), ("pearson", "spearman")),
        Glue("mnli", ("premise", "hypothesis"), _MNLI, ("acc",)),
        Glue("mnli", ("premise", "hypothesis"), _MNLI, ("acc",), suffix="_mismatched"),
        Glue("qnli", ("question", "sentence"), _ENTAILS, ("acc",)),
        Glue("rte", _SENTENCES, _ENTAILS, ("acc",)),
    )
}
