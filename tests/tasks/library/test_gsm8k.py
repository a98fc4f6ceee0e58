"""What each metric of GSM8K says about one response; the rules themselves are tested in tests/scoring."""

from __future__ import annotations

import pytest

from plr.tasks import Example, Response, tasks

TASK = tasks.get("gsm8k")
ROW = {"question": "How many?", "answer": "2*9 = <<2*9=18>>18\n#### 18"}
EXAMPLE = Example("test-0", ROW, TASK.prompt(ROW), TASK.target(ROW))


def _values(text: str, ended: bool = True) -> list[float | None]:
    scores = TASK.score(EXAMPLE, Response(text, ended))
    assert tuple(scores) == TASK.metrics
    return [score.value for score in scores.values()]


def test_prompt_and_target() -> None:
    assert EXAMPLE.prompt == "Question: How many?\nAnswer:"
    assert EXAMPLE.target == " 2*9 = <<2*9=18>>18\n#### 18"


@pytest.mark.parametrize(
    ("text", "ended", "marked", "flexible", "value", "first", "strict", "stopped"),
    [
        (" 18\n#### 18", True, 1, 1, 1, 1, 1, 1),
        (" 18\n#### 18", False, 1, 1, 1, 1, 0, 0),
        (" 18\n#### 18\n", True, 1, 1, 1, 1, 1, 1),
        (" 18\n#### 18\n#### 19", True, 1, 0, 0, 1, 0, 1),
        (" 18\n#### 18\n\nQuestion: 7?\nAnswer: #### 7", True, 1, 1, 1, 1, 0, 0),
        (" 18\n#### 18\n\n", False, 1, 1, 1, 1, 0, 0),
        (" so it is 18", True, 0, 1, 1, 0, 0, 1),
        (" #### $18", True, 0, 1, 1, 0, 0, 1),
        (" #### 18.00", True, 0, 0, 1, 0, 0, 1),
        (" #### 17", True, 0, 0, 0, 0, 0, 1),
        ("", True, 0, 0, 0, 0, 0, 1),
    ],
)
def test_metrics_of(
    text: str, ended: bool, marked: int, flexible: int, value: int, first: int, strict: int, stopped: int
) -> None:
    assert _values(text, ended) == [marked, flexible, value, first, strict, stopped]


def test_stopping_generation_at_a_stop_string_changes_no_score() -> None:
    full = " 18\n#### 18\n\nQuestion: 7?\nAnswer: #### 7"
    for cut in (full.index("Question:"), full.index("Question:") + len("Question:")):
        assert _values(full[:cut], ended=False) == _values(full, ended=True)


def test_boundary_is_the_first_marked_number() -> None:
    assert TASK.boundary("a 1 #### 18, and #### 19") == "a 1 #### 18,"
    assert TASK.boundary("no mark Question: #### 5") == "no mark "


def test_first_answer_is_never_below_strict() -> None:
    for text in ("#### 18", "#### 18 x", "18", "#### 19\n#### 18"):
        scores = TASK.score(EXAMPLE, Response(text, True))
        assert (scores[TASK.primary].value or 0) >= (scores[TASK.strict].value or 0)


@pytest.mark.parametrize(
    "gold",
    [
        "a\n#### 18 ",
        "b\n#### 50%",
        "c\n#### 12 apples",
        "d\n#### -3\n",
        "e\n#### 1,234.50",
        "f\n#### 7 km per hour",
        "#### 5 °C",
    ],
)
def test_gold_with_a_unit_is_right_by_itself(gold: str) -> None:
    example = Example("test-0", {"question": "How many?", "answer": gold}, TASK.prompt({"question": "?"}), f" {gold}")
    scores = TASK.score(example, Response(f" {gold}", ended=True))
    assert scores["exact_match,first-answer"].value == scores["exact_match,strict"].value == 1.0
    number = gold.rpartition("#### ")[2].split()[0].strip("%")
    assert TASK.score(example, Response(f" so #### {number}", ended=True))["exact_match,first-answer"].value == 1.0


@pytest.mark.parametrize("gold", ["#### 3/4", "#### 2^3", r"#### 2\\sqrt{3}", "#### 5 or 6"])
def test_what_is_more_than_a_number_is_not_cut_to_its_first(gold: str) -> None:
    example = Example("test-0", {"question": "?", "answer": gold}, "?", f" {gold}")
    assert TASK.score(example, Response("#### " + gold[5], ended=True))["exact_match,first-answer"].value == 0.0
