r"""Answers of the arithmetic suite of LLM-Adapters (Hu et al. 2023): a number, or the letter of an option.

Numbers (`number_match`), as the suite scores them: commas are deleted, the LAST `-?\d+\.?\d*` is read, and it is
right within 0.001 of the gold number. Known traps, kept because a published number must mean the same here: `10-5` ends
in -5, `1.2.3` in 3, and `48/2` alone reads 2.

Letters, two protocols side by side:

- `first_letter` (`llm-adapters`, bug for bug): the FIRST of A to E anywhere, so `Answer is (C)` reads A;
- `option_letter` (`fixed`): the first letter that stands alone behind the last "answer is"; without one the last
  letter that stands alone. What this gives up: small letters are no options, and a sentence that begins with the article
  "A" is read as an option where nothing says "answer is".
"""

from __future__ import annotations

import math
import re

from plr.scoring.score import Score, shown

__all__ = [
    "LETTERS",
    "cut_after_stated_answer",
    "first_letter",
    "letter_match",
    "number_match",
    "number_of",
    "option_letter",
    "read_number",
]

LETTERS = "ABCDE"
TOLERANCE = 1e-3

_NUMBER = re.compile(r"-?\d+\.?\d*")
_LETTER = re.compile(r"[A-E]")
_ALONE = re.compile(r"(?<![^\W_])[A-E](?![^\W_])")
_SAYS = re.compile(r"answer\s+is", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")


def number_of(text: str) -> float | None:
    """Read `text` as one finite number, or None.

    >>> number_of(" 1,200.50 "), number_of("15.0"), number_of("A"), number_of("nan")
    (1200.5, 15.0, None, None)
    """
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_number(text: str) -> str | None:
    """Find the last number of `text` with its commas deleted, as it stands there.

    >>> read_number("it is 1,200."), read_number("10-5"), read_number("nine")
    ('1200.', '-5', None)
    """
    numbers = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else None


def number_match(text: str, gold: str) -> Score:
    """Score the last number of `text` against `gold`, right within 0.001.

    >>> number_match("48/2 = 24 clips. The answer is 24.", "24.0").value, number_match("none", "24.0").value
    (1.0, 0.0)
    """
    wanted, read = number_of(gold), read_number(text)
    if wanted is None:
        return Score.unscored(f"the gold answer {shown(gold)!r} is no number")
    if read is None:
        return Score.of(False, "", f"no number in the response, gold {wanted:.15g}")
    return Score.of(abs(wanted - float(read)) <= TOLERANCE, read, f"read {shown(read)}, gold {wanted:.15g}")


def first_letter(text: str) -> str:
    """Find the first of A to E anywhere; empty if there is none.

    >>> first_letter("Answer is (C)"), first_letter("it is 5")
    ('A', '')
    """
    letter = _LETTER.search(text)
    return letter.group() if letter else ""


def option_letter(text: str) -> str:
    """Find the option that `text` chooses; empty if there is none.

    >>> option_letter("Answer is (C)"), option_letter("Not A. The answer is B, not D."), option_letter("so E fits best")
    ('C', 'B', 'E')
    """
    statements = list(_SAYS.finditer(text))
    chosen = _ALONE.search(text, statements[-1].end()) if statements else None
    if chosen:
        return chosen.group()
    alone = _ALONE.findall(text)
    return alone[-1] if alone else ""


def letter_match(letter: str, gold: str) -> Score:
    """Score `letter`, as a protocol read it, against `gold`."""
    if not letter:
        return Score.of(False, "", f"no option in the response, gold {gold}")
    return Score.of(letter == gold, letter, f"read {letter}, gold {gold}")


def cut_after_stated_answer(text: str, *, letters: bool) -> str:
    """Cut `text` after the first sentence that says "answer is" with a number (or an option) behind; without one, all.

    >>> cut_after_stated_answer("2 + 2 = 4. The answer is 4 dollars. The answer is 5.", letters=False)
    '2 + 2 = 4. The answer is 4 dollars.'
    >>> cut_after_stated_answer("The answer is clear: (B) 1.5 m.\\nA", letters=True)
    'The answer is clear: (B) 1.5 m.'
    """
    answer = _ALONE if letters else _NUMBER
    for statement in _SAYS.finditer(text):
        end = _SENTENCE_END.search(text, statement.end())
        stop = len(text) if end is None else end.start() if end.group() == "\n" else end.end()
        if answer.search(text, statement.end(), stop):
            return text[:stop]
    return text
