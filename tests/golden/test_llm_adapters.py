"""The protocol ``llm-adapters`` of the arithmetic suite, bug for bug, against its rule written down a second time.

Numbers: commas deleted, the last ``-?\\d+\\.?\\d*`` of the response, right within 0.001, none is wrong. Options: the first of A to
E anywhere. A response ends where the next ``### Response:`` begins. Whole tasks are asked, not their parts.
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.tasks import Example, Response, tasks

SUITE = "exact_match,llm-adapters"
NUMBER_TASKS = ["multiarith", "gsm8k_arithmetic", "addsub", "singleeq", "svamp", "mawps"]
GOLDS = ["72", "72.0", "0.5", "-3", "1200", "1,200", "18.333333333333332", "1e3", "007"]
SPELLED = [
    *GOLDS,
    "72.",
    "72.0009",
    "72.0011",
    "71.999",
    "$72",
    "72%",
    "72.5.1",
    "10-3",
    "--3",
    "1 200",
    ".5",
    "\u0667\u0662",
    "72e1",
]
WORDS = ["The answer is ", "the answer is: ", "answer is", "\n", " ", ". ", ", ", "= ", "A", "(B)", "C.", "Answer is (C)", "BAD",
         "e", "### Response:", "### Instruction:", "so ", "Bob has ", "\u00b2", ""]  # fmt: skip
TEXTS = st.lists(st.sampled_from([*WORDS, *SPELLED]), max_size=8).map("".join) | st.text(max_size=20)


def _cut(text: str) -> str:
    return re.split(re.escape("### Response:"), text, maxsplit=1)[0]


def _number(text: str, gold: str) -> float:
    digits = list(re.finditer(r"-?\d+\.?\d*", "".join(character for character in _cut(text) if character != ",")))
    if not digits:
        return 0.0
    return float(abs(float(gold.replace(",", "")) - float(digits[-1].group())) <= 1e-3)


def _letter(text: str, gold: str) -> float:
    return float(next((character for character in _cut(text) if character in "ABCDE"), "") == gold)


def _score(name: str, gold: str, text: str) -> float | None:
    task = tasks.get(name)
    row = {"instruction": "How many?", "answer": gold}
    return task.score(Example("test-0", row, "p", task.target(row)), Response(text, ended=True))[SUITE].value


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(TEXTS, st.sampled_from(GOLDS), st.sampled_from(NUMBER_TASKS))
def test_numbers(text: str, gold: str, name: str) -> None:
    assert _score(name, gold, text) == _number(text, gold)
    said = f"{text} The answer is {gold}"
    assert _score(name, gold, said) == _number(said, gold)


@settings(max_examples=700, deadline=None, derandomize=True, database=None)
@given(TEXTS, st.sampled_from("ABCDE"))
def test_options(text: str, gold: str) -> None:
    assert _score("aqua", gold, text) == _letter(text, gold)


@pytest.mark.parametrize(
    ("gold", "text", "suite", "fixed"),
    [
        ("C", "Answer is (C)", 0, 1),
        ("C", "Because of this the answer is C", 0, 1),
        ("A", "At first B, but the answer is D", 1, 0),
        ("D", "option D", 1, 1),
        ("E", "the answer is e", 0, 0),
        ("B", "", 0, 0),
    ],
)
def test_where_the_two_protocols_part(gold: str, text: str, suite: int, fixed: int) -> None:
    assert _score("aqua", gold, text) == suite
    row = {"instruction": "Which?", "answer": gold}
    scores = tasks.get("aqua").score(Example("test-0", row, "p", gold), Response(text, ended=True))
    assert scores["exact_match,fixed"].value == fixed


def test_the_golden_rule_is_not_trivial() -> None:
    drawn = random.Random(0)
    found = [_number("".join(drawn.choices([*WORDS, *SPELLED], k=5)), "72") for _ in range(500)]
    assert 0.05 < sum(found) / 500 < 0.9
