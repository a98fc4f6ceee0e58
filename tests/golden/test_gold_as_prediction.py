"""Every task: its gold answer as prediction is right on every row that can be decided, the gold of another row hardly ever.

It walks over the registry, so a new task is covered by being registered, and fails here until it has rows: those that it makes
itself, or samples of its form; where the real sets are at hand, they are asked too.

How often the gold of another row may be right: as often as two rows have one answer, from the answers' frequencies (the sum of
their squared shares: 0.34 for three labels), and three standard errors and a hundredth more. Free text is compared by ROUGE, where
the wrong one shares common words: less than 0.3.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import both

from plr.errors import DataError
from plr.scoring.classification import measure
from plr.tasks import Classification, Example, Response, Task, TaskData, tasks

LIMIT = 200
_ARITHMETIC = {"multiarith": "MultiArith", "gsm8k_arithmetic": "gsm8k", "addsub": "AddSub", "aqua": "AQuA", "singleeq": "SingleEq",
               "svamp": "SVAMP", "mawps": "mawps"}  # fmt: skip
FOLDERS = {
    "gsm8k": "gsm8k",
    "sql_create_context": "sql",
    "math10k": "llm_adapters/train/math10k_proxy.json",
    **{name: f"llm_adapters/test/{folder}" for name, folder in _ARITHMETIC.items()},
    "jnli": "jglue",
    "jcommonsenseqa": "jglue",
    "alpaca": "instruct/alpaca_en_demo.json",
    "chat": "instruct/chat.jsonl",
    "text_classification": "poems",
    "xlsum_ja": "xlsum",
    **{f"glue_{name}": f"glue_std/{name}" for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")},
    "glue_mnli_mismatched": "glue_std/mnli",
}
OURS_ALONE = ("chat", "text_classification", "xlsum_ja", "glue_mnli_mismatched")
"""Tasks for which nobody's rows but ours are read here."""


def _cases(kind: str) -> list[Any]:
    """Tasks of one kind with the path of their rows: of our samples, and of the real set; `None` where a task makes its own."""
    cases = []
    for name in (name for name in tasks.names() if tasks.get(name).kind == kind):
        if name not in FOLDERS:
            cases.append(pytest.param(name, None, id=f"{name}-generated"))
            continue
        paths = both(FOLDERS[name], label=name)
        cases += [
            pytest.param(name, *path.values, id=path.id, marks=path.marks)
            for path in (paths[:1] if name in OURS_ALONE else paths)
        ]
    return cases


def rows_of(task: Task, path: Path | None) -> Sequence[Example]:
    """Some rows of a task, at most LIMIT."""
    data = TaskData(path=str(path) if path else None, limit=LIMIT)
    assert path or task.hub is None, f"{task.name} reads the hub: give it rows in samples/ and their name in FOLDERS"
    try:
        split = next(s for s in ("test", "validation", "train") if s in task.splits(data))
        return task.load(split, data).examples
    except DataError as error:
        pytest.fail(
            f"{task.name} has no rows to be tested on: give it some in samples/ and their name in FOLDERS ({error})"
        )


def _shuffled(items: Sequence[Any], seed: int) -> list[Any]:
    """In another order, none in its old place."""
    order = random.Random(seed).sample(range(len(items)), len(items))
    to = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [items[to[i]] for i in range(len(items))]


def _chance(answers: Sequence[Any]) -> float:
    """How often two rows drawn at random have one answer, and three standard errors and a hundredth more."""
    n = len(answers)
    same = sum((count / n) ** 2 for count in Counter(answers).values())
    return same + 3 * (same * (1 - same) / n) ** 0.5 + 0.01


GENERATION, CLASSIFICATION = _cases("generation"), _cases("classification")


def test_every_task_is_one_of_both_kinds() -> None:
    assert {case.values[0] for case in GENERATION + CLASSIFICATION} == set(tasks.names())
    assert set(OURS_ALONE) <= set(FOLDERS) <= set(tasks.names())


@pytest.mark.parametrize(("name", "path"), GENERATION)
def test_gold_is_right_and_the_gold_of_another_row_is_not(name: str, path: Path | None) -> None:
    task = tasks.get(name)
    if name == "xlsum_ja":
        pytest.importorskip("fugashi", reason="the extra ja is not installed")
    examples = rows_of(task, path)
    targets = [example.target for example in examples]
    gold = task.score_all(examples, [Response(target, ended=True) for target in targets])
    decided = [score[task.primary].value for score in gold if score[task.primary].value is not None]
    assert len(decided) > 0.97 * len(examples)
    for metric in task.metrics:
        values = [score[metric].value for score in gold]
        assert {value for value in values if value is not None} == {1.0}, metric
        assert sum(value is None for value in values) <= 0.03 * len(values), metric

    turned = _shuffled(targets, seed=0)
    other = task.score_all(examples, [Response(target, ended=True) for target in turned])
    mean = sum(score[task.primary].value or 0.0 for score in other) / len(other)
    assert mean <= (0.3 if task.primary.startswith("rouge") else _chance(targets))


def _measured(task: Classification, gold: Sequence[Any], said: Sequence[Any], labels: int) -> dict[str, float]:
    outputs = np.eye(labels)[list(said)] if labels else np.asarray(said, dtype=float)[:, None]
    found = {metric: value for metric, (value, _) in measure(task.metrics, gold, outputs, resamples=0).items()}
    assert None not in found.values()
    return {metric: value for metric, value in found.items() if value is not None}


@pytest.mark.parametrize(("name", "path"), CLASSIFICATION)
def test_gold_labels_are_right_and_labels_of_other_rows_are_chance(name: str, path: Path | None) -> None:
    task = tasks.get(name)
    assert isinstance(task, Classification)
    examples = rows_of(task, path)
    names = sorted({e.target for e in examples}) if name == "text_classification" else list(task.labels())
    gold = [names.index(e.target) if names else float(e.target) for e in examples]
    assert _measured(task, gold, gold, len(names)) == pytest.approx(dict.fromkeys(task.metrics, 1.0))
    if "acc" in task.metrics:
        assert all(task.score(e, Response(e.target, ended=True))["acc"].value == 1.0 for e in examples)

    found = _measured(task, gold, _shuffled(gold, seed=0), len(names))
    few = 3 / len(gold) ** 0.5  # three standard errors of a correlation that is none
    for metric, value in found.items():
        if metric == "acc":
            assert value <= _chance(gold)
        elif metric == "f1":  # as many are called positive as are: precision and recall are the share of positives
            assert value <= sum(gold) / len(gold) + few
        else:  # correlations about 0, the area about 1/2
            assert abs(value - (0.5 if metric == "roc_auc" else 0.0)) <= few, metric
