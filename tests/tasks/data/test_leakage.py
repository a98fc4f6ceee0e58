"""Held-out rows in calibration or training data are found whatever their case and spacing; innocent rows are not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from real_data import both

from plr.errors import LeakageError
from plr.tasks import Example, TaskData, check_leakage, check_text_leakage, tasks

QUESTIONS = [f"How many apples does person number {i} have in the basket?" for i in range(40)]


def _examples(split: str, questions: list[str]) -> list[Example]:
    return [Example(f"{split}-{i}", {"question": q}, f"Question: {q}\nAnswer:", " 1") for i, q in enumerate(questions)]


HELD_OUT = {"validation": _examples("validation", QUESTIONS[:10]), "test": _examples("test", QUESTIONS[10:20])}


def test_disjoint_rows_pass() -> None:
    check_leakage(_examples("train", QUESTIONS[20:]), HELD_OUT)
    check_text_leakage({q: q for q in QUESTIONS[20:]}, HELD_OUT)


def test_rows_are_found_whatever_their_case_and_spacing() -> None:
    rows = _examples("train", [*QUESTIONS[20:30], QUESTIONS[12].upper().replace(" ", "  ")])
    with pytest.raises(
        LeakageError, match=r"^1 of 11 rows .* stand in held-out splits: train-10 = test test-2"
    ) as raised:
        check_leakage(rows, HELD_OUT)
    assert raised.value.exit_code == 2
    assert "next: remove them" in str(raised.value)


def test_the_first_five_are_named_and_all_are_counted() -> None:
    with pytest.raises(LeakageError, match=r"^20 of 40 .*train-4 = validation validation-4 and 15 more"):
        check_leakage(_examples("train", QUESTIONS), HELD_OUT)


def test_a_question_inside_a_longer_text_is_found() -> None:
    texts = {"line-0": "nothing here", "line-1": f"Exam.\n\n{QUESTIONS[3].lower()} -- Answer: 5"}
    with pytest.raises(LeakageError, match=r"^1 of 2 calibration texts .*line-1 = validation validation-3"):
        check_text_leakage(texts, HELD_OUT)


def test_the_beginning_of_a_question_alone_is_not_leakage() -> None:
    check_text_leakage({"a": "How many apples does person number 3 eat?"}, HELD_OUT)


def test_a_short_question_counts_only_as_a_whole_text() -> None:
    held_out = {"test": _examples("test", ["How many?"])}
    check_text_leakage({"a": "He asked how many? Nobody knew."}, held_out)
    with pytest.raises(LeakageError, match="a = test test-0"):
        check_text_leakage({"a": " how MANY ?"}, held_out)


def test_questions_that_begin_alike_are_told_apart() -> None:
    """All under one instruction, of every length, one of them the beginning of another."""
    start = "Below is an instruction that describes a task."
    held_out = {"test": _examples("test", [f"{start} {'word ' * i}end {i}" for i in range(50)])}
    for i in (0, 17, 49):
        with pytest.raises(LeakageError, match=rf"a = test test-{i}\n"):
            check_text_leakage({"a": f"So: {start} {'word ' * i}end {i}, and on"}, held_out)
    check_text_leakage({"a": f"{start} {'word ' * 60}", "b": f"{start} {'word ' * 17}end 18"}, held_out)


def test_a_question_in_a_script_without_spaces_is_found() -> None:
    held_out = {"test": _examples("test", ["電子機器で使用される最も主要な基板をなんと言う？", "何歳ですか？"])}
    with pytest.raises(LeakageError, match="a = test test-0"):
        check_text_leakage({"a": "問題。電子機器で使用される最も主要な基板をなんと言う？答え"}, held_out)
    with pytest.raises(LeakageError, match="a = test test-1"):
        check_text_leakage({"a": "何歳ですか"}, held_out)
    check_text_leakage({"a": "あなたは何歳ですか？", "b": "電子機器で使用される最も主要な部品"}, held_out)


def test_other_words_can_be_looked_for() -> None:
    held_out = {"test": [Example("test-0", {"body": "one two three four five six seven"}, "p", "t")]}
    with pytest.raises(LeakageError):
        check_text_leakage(
            {"a": "zero one two three four five six seven eight"},
            held_out,
            question=lambda example: example.row["body"],
        )
    check_text_leakage({"a": "zero one two three four five six eight"}, held_out, question=lambda e: e.row["body"])


@pytest.mark.parametrize("name", ["tiny_math", "tiny_sql"])
def test_the_embedded_tasks_do_not_leak(name: str) -> None:
    task = tasks.get(name)
    check_leakage(task.load("train").examples, {s: task.load(s).examples for s in ("validation", "test")})


@pytest.mark.parametrize(("folder", "drawn", "row"), both("gsm8k", samples=(60, 55), sets=(1000, 700)))
def test_gsm8k_does_not_leak_and_one_planted_row_is_found_quickly(folder: Path, drawn: int, row: int) -> None:
    task, data = tasks.get("gsm8k"), TaskData(path=str(folder))
    train = task.load("train", data).examples
    held_out = {split: task.load(split, data).examples for split in ("validation", "test")}
    check_leakage(train, held_out)
    texts = {example.id: example.prompt + example.target for example in random.Random(0).sample(train, drawn)}
    start = time.process_time()
    check_text_leakage(texts, held_out)
    assert time.process_time() - start < 5  # seconds of CPU
    planted = held_out["test"][row]
    with pytest.raises(LeakageError, match=planted.id):
        check_text_leakage(texts | {"planted": "Read: " + planted.row["question"]}, held_out)
