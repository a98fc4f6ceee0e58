"""The rules of the arithmetic suite against the few lines of the original, and the rule that mends it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr.scoring import arithmetic as a

PIECES = st.sampled_from(
    [
        "1",
        "23",
        ",",
        ".",
        "-",
        " ",
        "\n",
        "$",
        "%",
        "e5",
        "The answer is ",
        "answer is",
        "(A)",
        "B",
        "C.",
        "AB",
        "so",
        "A ",
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40)


def _theirs(text: str, label: str) -> bool:
    """What the suite computes for a number: commas deleted, last match as a float, within 0.001."""
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    prediction = float(found[-1]) if found else float("inf")
    return abs(float(label) - prediction) <= 0.001


@given(TEXTS, st.sampled_from(["1", "23.0", "-1", "123", "0.23"]))
def test_numbers_are_scored_as_the_suite_scores_them(text: str, gold: str) -> None:
    assert a.number_match(text, gold).value == float(_theirs(text, gold))


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("The answer is 1,200.", "1200.0", 1),
        ("about 5.0009", "5", 1),
        ("about 5.0011", "5", 0),
        ("It costs $15 and not 10% more", "15", 0),
        ("10-5", "5", 0),
        ("10-5", "-5", 1),
        ("1.8333", "1.8333333333333335", 1),
        ("", "0", 0),
        ("9" * 400, "5", 0),
    ],
)
def test_traps_of_numbers(text: str, gold: str, value: float) -> None:
    assert a.number_match(text, gold).value == value


def test_large_numbers_are_shown_in_full() -> None:
    assert a.number_match("1234568", "1,234,567").explanation == "read 1234568, gold 1234567"


def test_a_gold_answer_without_a_number_is_unscored() -> None:
    assert a.number_match("5", "five").value is None


@given(TEXTS)
def test_first_letter_is_the_suites(text: str) -> None:
    found = re.findall(r"A|B|C|D|E", text.strip())
    assert a.first_letter(text) == (found[0] if found else "")


@pytest.mark.parametrize(
    ("text", "first", "fixed"),
    [
        ("Answer is (C)", "A", "C"),
        ("The answer is (D).", "D", "D"),
        ("Bob has 5. The answer is C", "B", "C"),
        ("The answer is B. No: the ANSWER IS\n E", "B", "E"),
        ("The answer is 12, so it is option (B) 12", "B", "B"),
        ("Options (A) and (D) fall away, C is left. The answer is plain", "A", "C"),
        ("CAB", "C", ""),
        ("It is x_E then", "E", "E"),
        ("the answer is b", "", ""),
        ("", "", ""),
    ],
)
def test_two_protocols_of_letters(text: str, first: str, fixed: str) -> None:
    assert (a.first_letter(text), a.option_letter(text)) == (first, fixed)


@given(TEXTS, st.booleans())
def test_a_cut_is_a_prefix_and_cutting_again_changes_nothing(text: str, letters: bool) -> None:
    cut = a.cut_after_stated_answer(text, letters=letters)
    assert text.startswith(cut)
    assert a.cut_after_stated_answer(cut, letters=letters) == cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a 3. The answer is 4.\n### Next 5", "a 3. The answer is 4."),
        ("The answer is 4.5 km\nmore", "The answer is 4.5 km"),
        ("The answer is not known. The answer is 7", "The answer is not known. The answer is 7"),
        ("no 4. More", "no 4. More"),
    ],
)
def test_where_a_number_is_stated(text: str, cut: str) -> None:
    assert a.cut_after_stated_answer(text, letters=False) == cut
