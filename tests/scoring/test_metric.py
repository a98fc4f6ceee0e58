"""Metrics: what plr's own tasks measure is known, nothing is read off a name, a record says all that is needed to show a value."""

from __future__ import annotations

import json

import pytest

from plr.scoring.by_name import METRICS as WRITTEN
from plr.scoring.classification import METRICS as HEADS
from plr.scoring.metric import ANSWER_LOSS, KNOWN, PERCENT, Metric, find_metric, metric_named
from plr.tasks import tasks


def test_every_metric_of_plr_is_declared() -> None:
    names = {name for task in tasks.names() for name in tasks.get(task).metrics} | {*WRITTEN, *HEADS, ANSWER_LOSS.name}
    assert [name for name in sorted(names) if not metric_named(name).declared] == []


@pytest.mark.parametrize("name", ["squared_loss", "perplexity_of_style", "bleu", "acc_norm", "exact", "", ",strict"])
def test_nothing_is_read_off_a_name(name: str) -> None:
    metric = metric_named(name)
    assert metric == Metric(name, declared=False)
    assert (metric.show(0.25), metric.sign, metric.record) == ("0.2500", 1, {})


def test_a_filter_changes_neither_unit_nor_direction() -> None:
    assert metric_named("exact_match,strict") == Metric("exact_match,strict", PERCENT, proportion=True)
    declared = [Metric("wer", PERCENT, higher_is_better=False), Metric("wer,raw", "errors")]
    assert find_metric("wer,folded", declared) == Metric("wer,folded", PERCENT, higher_is_better=False)
    assert find_metric("wer,raw", declared) == Metric("wer,raw", "errors")
    assert find_metric("w", declared) is None


@pytest.mark.parametrize(
    "metric", [*KNOWN.values(), Metric("bleu", digits=1), Metric("t", "s", higher_is_better=False)]
)
def test_a_record_gives_the_metric_back(metric: Metric) -> None:
    """As JSON beside the value, whatever is known of the name by then."""
    record = json.loads(json.dumps({"value": 0.5, "n": 3} | metric.record))
    assert Metric.recorded(metric.name, record) == metric
    assert Metric.recorded("other", record).unit == metric.unit


def test_a_result_without_units_is_known_by_name() -> None:
    assert Metric.recorded("pearson", {"value": 0.5}).of_numbers
    assert not Metric.recorded("bleu", {"value": 0.5}).declared


def test_a_proportion_is_a_percentage() -> None:
    with pytest.raises(ValueError, match="is_it is a proportion in seconds; expected: the unit 'percent'"):
        Metric("is_it", "seconds", proportion=True)
