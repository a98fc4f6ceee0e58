"""Text classification on a table of one's own: two columns, a text and its label.

`--data` names a `.tsv` or `.csv` file, or a folder with `train` and `test` (and `validation`) files; `.jsonl` is
read too. Columns called `text` and `label` are taken by name; otherwise there are two columns, the text first (or the label,
if its column is called so), and the first line may be a head or a row: it is a row if its second cell is a label that stands
below it.

The labels of the head are the distinct labels of the train split, sorted, as they are written. `acc` counts the rows whose
likeliest label is right; `roc_auc` is the area under the ROC curve of the probability of the second label, and with more than
two labels the mean of those of each label against the rest.

A row of a table, as text and label: `Shall I compare thee to a summer's day?` and `shakespeare`.

The awkward cases: a label that stands in test and never in train is an error, not a wrong answer; a table with one label too.
"""

from __future__ import annotations

from plr.errors import DataError
from plr.tasks.base import tasks
from plr.tasks.classification import Classification
from plr.tasks.data.sources import Row
from plr.tasks.types import Fields, HeadSpec, TaskData

__all__ = ["TEXT_CLASSIFICATION", "TextClassification"]


class TextClassification(Classification):
    name = "text_classification"
    version = 1
    fields = ("text", "label")
    text_fields = ("text",)
    metrics = ("acc", "roc_auc")
    primary = "acc"

    def labels(self, data: TaskData | None = None) -> tuple[str, ...]:
        names = sorted({example.target for example in self.load("train", data).examples})
        if len(names) < 2:
            raise DataError(f"the train split has one label, {names[0]!r}", expected="two at least")
        return tuple(names)

    def label(self, row: Fields, head: HeadSpec | None = None) -> int | float:
        if head is None:
            raise DataError("the labels of a table are those of its train split", hint="pass head(data)")
        if (name := self.target(row)) not in head.names:
            raise DataError(
                f"the label {name!r} stands in no row of the train split", expected="one of " + ", ".join(head.names)
            )
        return head.names.index(name)

    def target(self, row: Fields) -> str:
        return str(row["label"]).strip()

    def adopt(self, rows: list[Row]) -> list[Row]:
        names = tuple(map(str, rows[0].values))
        if len(names) == 2 and set(names) != set(self.fields):
            columns = names[::-1] if names[0] == "label" else names
            rows = [
                row._replace(values={new: row.values.get(old) for new, old in zip(self.fields, columns, strict=True)})
                for row in rows
            ]
            if "label" not in names and any(row.values.get("label") == names[1] for row in rows):
                head = Row(
                    rows[0].split,
                    0,
                    dict(zip(self.fields, names, strict=True)),
                    f"the first line above {rows[0].where}",
                )
                rows = [head, *(row._replace(position=row.position + 1) for row in rows)]
        return [
            row._replace(values={**row.values, "label": str(label)}) if (label := _number(row)) is not None else row
            for row in rows
        ]


def _number(row: Row) -> int | None:
    """Read a label that JSON gives as a whole number: 0 is the label `0`."""
    label = row.values.get("label")
    return label if isinstance(label, int) else None


TEXT_CLASSIFICATION = tasks.register("text_classification")(TextClassification())
