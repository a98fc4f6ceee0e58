"""Every task: its gold answer as prediction is right on every row that can be decided, the gold of another row hardly ever.

It walks over the registry, so a new task is covered by being registered, and fails here until it has rows: real ones (``REAL``,
beside the project), rows that it makes itself, or rows of its form written here (``WRITTEN``).

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

from plr.errors import DataError
from plr.scoring.classification import measure
from plr.tasks import Classification, Example, Response, Task, TaskData, tasks

DATA = Path(__file__).parents[2] / "../shared/data"
LIMIT = 200
_ARITHMETIC = {"multiarith": "MultiArith", "gsm8k_arithmetic": "gsm8k", "addsub": "AddSub", "aqua": "AQuA", "singleeq": "SingleEq",
               "svamp": "SVAMP", "mawps": "mawps"}  # fmt: skip
REAL = {
    "gsm8k": "gsm8k",
    "sql_create_context": "sql",
    "math10k": "llm_adapters/train/math10k_proxy.json",
    **{name: f"llm_adapters/test/{folder}" for name, folder in _ARITHMETIC.items()},
    "jnli": "jglue",
    "jcommonsenseqa": "jglue",
    "alpaca": "instruct/alpaca_en_demo.json",
    **{f"glue_{name}": f"glue_std/{name}" for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")},
}
_SUMMARIES = (
    "首相は新しい経済計画を発表した。",
    "北海道で大雨、住民に避難を呼びかけ",
    "百メートル走で世界記録が出た。",
    "裁判所が元社長に有罪判決を言い渡した",
    "小惑星の砂を研究者らが調べ始めた。",
    "中央銀行、二年ぶりに金利を上げる",
    "フランスの美術館から絵が盗まれた。",
    "パンダの赤ちゃんが動物園で生まれる",
)
WRITTEN: dict[str, list[dict[str, Any]]] = {
    "xlsum_ja": [{"text": f"本文{i}。" + text * 3, "summary": text} for i, text in enumerate(_SUMMARIES)],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"Say {word} to {name}."},
                {"role": "assistant", "content": f"{word}, {name}!"},
            ]
        }
        for word in ("Hello", "Goodbye", "Thanks", "Welcome", "Sorry")
        for name in ("Ada", "Alan", "Grace", "Kurt", "Emmy", "John")
    ],
    "text_classification": [
        {"text": f"poem number {i} by {name}", "label": name} for i in range(20) for name in ("blake", "keats", "poe")
    ],
    "glue_mnli_mismatched": [
        {"premise": f"{i} birds sing.", "hypothesis": f"Birds are {word}.", "label": label}
        for i in range(20)
        for label, word in enumerate(("loud", "blue", "silent"))
    ],
}


def rows_of(task: Task) -> tuple[Sequence[Example], str]:
    """Some rows of a task, at most LIMIT, and what they are."""
    if task.name in WRITTEN:
        rows = WRITTEN[task.name][:LIMIT]
        return [
            Example(f"test-{i}", row, task.prompt(row), task.target(row)) for i, row in enumerate(rows)
        ], "written here"
    if task.name in REAL:
        if not DATA.exists():
            pytest.skip(f"real data is not at {DATA}")
        data = TaskData(path=str(DATA / REAL[task.name]), limit=LIMIT)
        return task.load(
            next(s for s in ("test", "validation", "train") if s in task.splits(data)), data
        ).examples, "real"
    assert task.hub is None, f"{task.name} reads the hub: give it rows in REAL or WRITTEN"
    try:
        made = task.load("test", TaskData(limit=LIMIT))
    except DataError as error:
        pytest.fail(f"{task.name} has no rows to be tested on; give it some in REAL or WRITTEN ({error})")
    return made.examples, "generated"


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


GENERATION = [name for name in tasks.names() if tasks.get(name).kind == "generation"]
CLASSIFICATION = [name for name in tasks.names() if tasks.get(name).kind == "classification"]


def test_every_task_is_one_of_both_kinds() -> None:
    assert sorted(GENERATION + CLASSIFICATION) == sorted(tasks.names())
    assert set(WRITTEN) | set(REAL) <= set(tasks.names())


@pytest.mark.parametrize("name", GENERATION)
def test_gold_is_right_and_the_gold_of_another_row_is_not(name: str) -> None:
    task = tasks.get(name)
    if name == "xlsum_ja":
        pytest.importorskip("fugashi", reason="the extra ja is not installed")
    examples, _ = rows_of(task)
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


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_gold_labels_are_right_and_labels_of_other_rows_are_chance(name: str) -> None:
    task = tasks.get(name)
    assert isinstance(task, Classification)
    examples, _ = rows_of(task)
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
