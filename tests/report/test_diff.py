"""Two results row by row, against what their own files say."""

from __future__ import annotations

import json

import pytest

from plr import Lab, stats
from plr.core.store import Artifact
from plr.errors import DataError, UsageError
from plr.evaluation.samples import read_samples
from plr.report.diff import diff_json, result_words

QUICK = ["train.epochs=2", "train.train_limit=64", "quantize.samples=8"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), dtype="float32", device="cpu", offline=True)


@pytest.fixture(scope="module")
def results(lab: Lab) -> tuple[Artifact, Artifact]:
    """The base without an adapter, and with one."""
    adapter = lab.train(bits=8, task="tiny_math", overrides=QUICK)
    options = {"limit": 40, "max_new_tokens": 24}
    return lab.evaluate("embedded:tiny", "tiny_math", **options), lab.evaluate(adapter, **options)  # type: ignore[arg-type]


def test_rows_and_counts_are_those_of_the_files(lab: Lab, results: tuple[Artifact, Artifact]) -> None:
    first, second = results
    found = lab.diff(first, second)
    name = first.metrics["primary"]
    one, two = ({str(r["doc_id"]): r for r in read_samples(artifact.path)} for artifact in results)
    assert found.metric.name == name
    assert len(found.rows) == 40
    for row in found.rows:
        a, b = one[row.doc], two[row.doc]
        assert row.scores == (a[name], b[name])
        assert row.answers == (a["resps"][0][0], b["resps"][0][0])
        assert row.gold == a["target"]
        expected = {(0, 1): "gained", (1, 0): "lost", (1, 1): "both right", (0, 0): "both wrong"}
        assert row.change == expected[int(a[name]), int(b[name])]
    gained, lost = (found.counts.get(change, 0) for change in ("gained", "lost"))
    assert found.contrast.p == pytest.approx(stats.mcnemar_exact(lost, gained))
    difference = second.metrics["metrics"][name]["value"] - first.metrics["metrics"][name]["value"]
    assert found.contrast.difference == pytest.approx(difference)
    assert result_words(found.first) == "embedded:tiny, 16 bits, no adapter"
    value = diff_json(found, found.rows[:2])
    assert json.loads(json.dumps(value))["counts"] == dict(found.counts)


def test_by_another_metric(lab: Lab, results: tuple[Artifact, Artifact]) -> None:
    found = lab.diff(*results, "answer_loss")
    assert {row.change for row in found.rows} <= {"gained", "lost", "same"}
    better = sum(row.scores[1] < row.scores[0] for row in found.rows)
    assert found.counts.get("gained", 0) == better
    with pytest.raises(UsageError, match=r"bleu has no score of each row in both results\n  expected: one of"):
        lab.diff(*results, "bleu")


def test_rows_that_one_side_lacks_are_counted(lab: Lab, results: tuple[Artifact, Artifact]) -> None:
    fewer = lab.evaluate("embedded:tiny", "tiny_math", limit=30, max_new_tokens=24)
    found = lab.diff(fewer, results[1])
    assert (len(found.rows), found.left_out) == (30, (0, 10))


def test_what_cannot_be_compared(lab: Lab, results: tuple[Artifact, Artifact]) -> None:
    with pytest.raises(UsageError, match=r"both are one result"):
        lab.diff(results[0], results[0])
    other = lab.evaluate("embedded:tiny", "tiny_sql", limit=5, max_new_tokens=4)
    with pytest.raises(UsageError, match=r"expected: two results of one task, its rows and one split"):
        lab.diff(results[0], other)
    validation = lab.evaluate("embedded:tiny", "tiny_math", limit=5, max_new_tokens=4, split="validation")
    with pytest.raises(UsageError, match=r"tiny_math \(test\), .* \(validation\)"):
        lab.diff(results[0], validation)
    adapter = next(artifact for artifact in lab.store.all("adapter"))
    with pytest.raises(UsageError, match=r"adapter"):
        lab.diff(adapter, results[0])


def test_another_prompt_is_no_row_of_the_same(lab: Lab, results: tuple[Artifact, Artifact]) -> None:
    shots = lab.evaluate("embedded:tiny", "tiny_math", limit=40, max_new_tokens=4, num_fewshot=1)
    with pytest.raises(DataError, match=r"has another prompt in the second result"):
        lab.diff(results[0], shots)
