r"""JNLI and JCommonsenseQA of JGLUE (Kurihara et al. 2022), answered in words, as in the LoRA study of LINE (Wang et al. 2023).

A real row of each, first of the validation files, as prompt and target (Table 1 of that paper; `[SEP]` is text here)::

    時計がついている場所に[...]看板が設置されています。[SEP]屋根の上に看板があり時計もついています。[SEP]中立
    電子機器で使用される[...]なんと言う？[SEP]掲示板[SEP]パソコン[SEP]マザーボード[SEP]ハードディスク[SEP]まな板[SEP]マザーボード

- `jnli`: 20,073 / 2,434 rows (train / validation); the answer is 含意 (entailment), 中立 (neutral) or 矛盾 (contradiction);
- `jcommonsenseqa`: 8,939 / 1,119 rows; the answer is the text of one of five choices.

The model writes its answer, so it can write what is no label. Such an answer is wrong, and counted:

- `exact_match,first-answer` (primary; the accuracy of the paper): string equality of the answer, which ends with its
  line or at `[SEP]`;
- `in_choices,first-answer`: the answer is one of the labels, right or wrong;
- `exact_match,strict`, `ended`: as everywhere.

Splits as in the paper: one half of the validation rows, seeded, is the test split (JNLI 1,217 / 1,217, JCommonsenseQA 560 / 559).
Rows of the same two sentences, in either order, fall to the same half. The test files that JGLUE published later are not read.
JGLUE's own files are read under their names (`jnli-valid-v1.3.json`), or as `train` and `validation`. On the hub the rows
lie in `zenless-lab/jnli` (whose `test` is JGLUE's validation, `premise` its first sentence, and 0, 1, 2 its labels in the
order entailment, neutral, contradiction) and `sbintuitions/JCommonsenseQA`.
"""

from __future__ import annotations

from typing import ClassVar

from plr.scoring.numbers import cut_at_stops
from plr.scoring.score import Score
from plr.tasks.base import Task, tasks
from plr.tasks.data.hub import HubData
from plr.tasks.data.local import STEMS
from plr.tasks.data.sources import Row
from plr.tasks.data.splits import normalized
from plr.tasks.types import Example, Fields, Response

__all__ = ["JCOMMONSENSEQA", "JNLI", "JCommonsenseQA", "Jglue", "Jnli"]

SEP = "[SEP]"
FIRST, KNOWN = "exact_match,first-answer", "in_choices,first-answer"
LABELS = {"entailment": "含意", "neutral": "中立", "contradiction": "矛盾"}
CHOICES = tuple(f"choice{i}" for i in range(5))


class Jglue(Task):
    """Common base of both tasks: texts between separators, an answer behind the last."""

    version = 1
    metrics = (FIRST, KNOWN, "exact_match,strict", "ended")
    primary = FIRST
    stop = (SEP,)
    halves_validation = True
    json_holds_lines = True
    texts: ClassVar[tuple[str, ...]]
    """The fields before the answer."""

    def __init__(self) -> None:
        versions = ("v1.0", "v1.1", "v1.2", "v1.3")
        own = {
            f"{self.name}-{theirs}-{v}": ours
            for v in versions
            for theirs, ours in (("train", "train"), ("valid", "validation"))
        }
        self.stems = {**STEMS, **own}  # type: ignore[misc]

    def prompt(self, row: Fields) -> str:
        return "".join(f"{str(row[name]).strip()}{SEP}" for name in self.texts)

    def labels(self, row: Fields) -> tuple[str, ...]:
        """Return the answers there are to a row."""
        raise NotImplementedError

    def boundary(self, text: str) -> str:
        return cut_at_stops(text, self.stop).lstrip().partition("\n")[0].rstrip()

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        answer, gold = self.boundary(response.text), example.target
        known = answer in self.labels(example.row)
        explanation = "equal" if answer == gold else f"gold: {gold}" if known else f"none of the labels; gold: {gold}"
        return {
            FIRST: Score.of(answer == gold, answer, explanation),
            KNOWN: Score.of(known, answer, "one of the labels" if known else "none of the labels"),
        }


class Jnli(Jglue):
    name = "jnli"
    fields = ("sentence1", "sentence2", "label")
    texts = ("sentence1", "sentence2")
    max_new_tokens = 16
    hub = HubData("zenless-lab/jnli", splits={"train": "train", "validation": "test"})

    def adopt(self, rows: list[Row]) -> list[Row]:
        if not {"premise", "hypothesis"} <= rows[0].values.keys():
            return rows
        return [row._replace(values=_own_names(row.values)) for row in rows]

    def target(self, row: Fields) -> str:
        return LABELS[row["label"]]

    def labels(self, row: Fields) -> tuple[str, ...]:
        return tuple(LABELS.values())

    def groups(self, row: Fields) -> frozenset[str]:
        return frozenset({"\n".join(sorted(normalized(str(row[name])) for name in self.texts))})

    def problem(self, row: Fields) -> str | None:
        return None if row["label"] in LABELS else f"the label is {row['label']!r}, not one of {', '.join(LABELS)}"


class JCommonsenseQA(Jglue):
    name = "jcommonsenseqa"
    fields = ("question", *CHOICES)
    texts = ("question", *CHOICES)
    max_new_tokens = 48
    hub = HubData("sbintuitions/JCommonsenseQA", splits={"train": "train", "validation": "validation"})

    def target(self, row: Fields) -> str:
        return str(row[CHOICES[int(row["label"])]]).strip()

    def labels(self, row: Fields) -> tuple[str, ...]:
        return tuple(str(row[name]).strip() for name in CHOICES)

    def groups(self, row: Fields) -> frozenset[str]:
        return frozenset({normalized(str(row["question"]))})

    def problem(self, row: Fields) -> str | None:
        label = row.get("label")
        return None if str(label) in ("0", "1", "2", "3", "4") else f"the label is {label!r}, not 0 to 4"


def _own_names(values: Fields) -> dict[str, object]:
    """Return a row of the hub as JGLUE's own files spell it."""
    names, label = tuple(LABELS), values.get("label")
    known = type(label) is int and 0 <= label < len(names)
    return {
        "sentence1": values.get("premise"),
        "sentence2": values.get("hypothesis"),
        "label": names[label] if known else str(label),  # type: ignore[index]
    }


JNLI = tasks.register("jnli")(Jnli())
JCOMMONSENSEQA = tasks.register("jcommonsenseqa")(JCommonsenseQA())
