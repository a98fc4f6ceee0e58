"""The contract every registered task keeps, and the way to add one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import pytest

from plr.errors import DataError, UnknownNameError
from plr.registry import Registry
from plr.scoring import Score
from plr.scoring.classification import METRICS
from plr.tasks import Classification, Example, Response, Task, TaskData, tasks
from plr.tasks.library.gsm8k import GSM8K


class Echo(Task):
    name = "echo"
    fields = ("question", "answer")
    metrics = ("exact_match", "ended")
    primary = "exact_match"

    def prompt(self, row: Mapping[str, Any]) -> str:
        return f"{row['question']}:"

    def target(self, row: Mapping[str, Any]) -> str:
        return f" {row['answer']}"

    def boundary(self, text: str) -> str:
        return text

    def scores(self, example: Example, response: Response) -> dict[str, Score]:
        return {"exact_match": Score.of(response.text == example.target, response.text, "as written")}


ECHO = Echo()


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_keeps_the_contract(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name
    assert task.version >= 1
    assert task.max_new_tokens > 0
    assert len(set(task.metrics)) == len(task.metrics)
    assert task.primary in task.metrics
    if task.kind == "generation":
        assert task.metrics[-1] == "ended"
        # An overlap of texts is a matter of degree: it has no twin that asks for the stop too.
        assert (task.strict in task.metrics) != task.primary.startswith("rouge")
    else:
        assert isinstance(task, Classification)
        assert set(task.metrics) <= METRICS.keys()
        assert set(task.text_fields) <= set(task.fields)
    assert (type(task).__module__ or "").startswith("plr.tasks")


@pytest.mark.parametrize("name", ["tiny_math", "tiny_sql"])
def test_gold_of_the_embedded_tasks_scores_all(name: str) -> None:
    task = tasks.get(name)
    counts = {split: len(task.load(split).examples) for split in ("train", "validation", "test")}
    assert counts == {"train": 4000, "validation": 200, "test": 400}
    for example in task.load("test", TaskData(limit=100)).examples:
        assert {s.value for s in task.score(example, Response(example.target, True)).values()} == {1.0}
        assert task.boundary(example.target).strip() == example.target.strip()


@pytest.mark.parametrize(("tiny", "real"), [("tiny_math", "gsm8k"), ("tiny_sql", "sql_create_context")])
def test_embedded_tasks_share_prompt_and_scorer_with_the_real_ones(tiny: str, real: str) -> None:
    row = {"question": "q", "context": "CREATE TABLE t (a INT)", "answer": "#### 1"}
    assert tasks.get(tiny).prompt(row) == tasks.get(real).prompt(row)
    assert type(tasks.get(tiny)).scores is type(tasks.get(real)).scores


def test_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean gsm8k"):
        tasks.get("gms8k")


def test_a_third_party_task_comes_in_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("echo", f"{__name__}:ECHO", "plr.tasks")
    monkeypatch.setattr("plr.registry.entry_points", lambda group: [point] if group == "plr.tasks" else [])
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: ECHO)
    found: Registry[Task] = Registry("task", "plr.tasks")
    assert found.get("echo") is ECHO


def test_a_task_without_data_says_how_to_give_some() -> None:
    with pytest.raises(DataError, match=r"echo has no data of its own\n  next: give its rows with --data"):
        ECHO.load("test")


def test_a_forgotten_metric_is_an_error_at_once() -> None:
    class Forgetful(Echo):
        metrics = ("exact_match", "other", "ended")

    with pytest.raises(KeyError, match="other"):
        Forgetful().score(Example("a", {}, "p", " t"), Response(" t", True))


def test_ended_needs_eos_before_any_stop_text() -> None:
    example = Example("a", {"question": "q", "answer": "#### 1"}, "p", " #### 1")
    ended = [
        GSM8K.score(example, r)["ended"]
        for r in (Response("#### 1", True), Response("#### 1", False), Response("x </s>", True))
    ]
    assert [score.value for score in ended] == [1.0, 0.0, 0.0]
    assert [score.explanation for score in ended] == ["EOS", "no EOS within the limit", "ran into '</s>'"]
