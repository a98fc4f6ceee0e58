r"""Answers that are numbers: GSM8K as lm-eval scores it, and a match by value beside it.

lm-eval (0.4.13, `tasks/gsm8k/gsm8k.yaml`, version 3.0) works in three steps, repeated here with the standard
library alone:

1. the response is cut at the first of each stop string (`cut_at_stops`);
2. a filter reads the answer: `strict-match` takes the first `#### n` (`strict_extract`),
   `flexible-extract` the last thing that looks like a number (`flexible_extract`); nothing found reads
   `[invalid]`;
3. `exact_match` deletes from both sides, in this order, `,` then `\$` then `(?s).*#### ` then `\.$`,
   lower-cases and compares the strings (`normalize_answer`).

What this gives up, because a published number must mean the same here: `#### $15` is invalid under strict (`$`
is not in its pattern), `15.00` is not `15`, and `is 5...` reads `5..` under flexible. `numeric_match`
has none of these three faults; it is ours, and is reported under its own name. It reads decimal numbers and fractions, plain
(`3/4`) or in LaTeX (`\frac{3}{4}`, `1{,}200`, `50\%`), with the long minus of typesetting; of `1.5e3` it reads 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from plr.scoring.score import Score, shown

__all__ = [
    "INVALID",
    "cut_after_marked_answer",
    "cut_at_stops",
    "exact_match",
    "flexible_extract",
    "last_number",
    "normalize_answer",
    "numeric_match",
    "strict_extract",
]

INVALID = "[invalid]"
MARK = "#### "

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FINAL_POINT = re.compile(r"\.$")
_SIGN = r"(?:(?<![\w)\]$%])-\$?|\$-?)?"
_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
_NUMBER = re.compile(rf"{_SIGN}{_DIGITS}(?: ?/ ?[0-9]{{1,15}}(?![0-9/]|[.,][0-9]))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_UNIT = re.compile(r"[^0-9/\\^*+=]*")


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Cut `text` before the first of every stop string, as lm-eval does.

    >>> cut_at_stops("#### 5\\n\\nQuestion: next", ("Question:",))
    '#### 5\\n\\n'
    """
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def cut_after_marked_answer(text: str) -> str:
    """Cut `text` after the first `#### n`: where an answer of GSM8K is complete. Without one, all of it.

    >>> cut_after_marked_answer("2+2 = 4\\n#### 4\\n#### 5")
    '2+2 = 4\\n#### 4'
    """
    match = _STRICT.search(text)
    return text[: match.end()] if match else text


def strict_extract(text: str) -> str:
    """Extract as lm-eval's `strict-match` does: the number of the first `#### n`.

    >>> strict_extract("so 1,200.\\n#### 1,200\\n#### 7"), strict_extract("#### $15")
    ('1,200', '[invalid]')
    """
    match = _STRICT.search(text)
    return match.group(1).strip() if match else INVALID


def flexible_extract(text: str) -> str:
    """Extract as lm-eval's `flexible-extract` does: the last run of two or more of `$ 0-9 . ,`, or the last digits.

    >>> flexible_extract("#### $15"), flexible_extract("the answer is 5..."), flexible_extract("no idea")
    ('$15', '5...', '[invalid]')
    """
    numbers = _FLEXIBLE.findall(text)
    return (numbers[-1][0] or numbers[-1][1]).strip() if numbers else INVALID


def normalize_answer(text: str) -> str:
    r"""Normalize an answer as lm-eval's `exact_match` does for GSM8K.

    `(?s).*#### ` deletes through the LAST mark, so a gold answer with its whole working is reduced to its number.
    It is done without the regular expression, which takes quadratic time on a long text that holds no mark.

    >>> normalize_answer("2+2 = <<2+2=4>>4\n#### 1,004."), normalize_answer("$15.00"), normalize_answer("5...")
    ('1004', '15.00', '5..')
    """
    text = text.replace(",", "").replace("$", "").rpartition(MARK)[2]
    return _FINAL_POINT.sub("", text).lower()


def exact_match(answer: str, gold: str, *, units: bool = False) -> Score:
    """Score `answer`, as a filter read it, against `gold`, the whole target.

    With `units`, words, a per cent sign or white space behind the marked number of the gold are no part of it: of
    `#### 12 apples` the gold is 12. A fraction is not cut to its numerator. lm-eval has no such rule.
    """
    read, wanted = normalize_answer(answer), _without_unit(gold) if units else normalize_answer(gold)
    if answer == INVALID:
        return Score.of(read == wanted, answer, "no answer in the expected form")
    return Score.of(read == wanted, answer, f"read {shown(read)!r}, gold {shown(wanted)!r}")


def _without_unit(gold: str) -> str:
    """Normalize a gold answer; what stands behind its marked number is left out where it is words or a per cent sign alone."""
    match = _STRICT.search(gold)
    if match is None or MARK in gold[match.end() :] or not _UNIT.fullmatch(gold, match.end()):
        return normalize_answer(gold)
    return normalize_answer(match.group(1))


def last_number(text: str) -> Decimal | Fraction | None:
    r"""Find the last number of `text`; `$` and the commas of thousands are read through.

    A minus is a sign unless something stands before it that can be subtracted from: `10-5` ends in 5, `= -5` in -5.

    >>> [str(last_number(text)) for text in ("$1,200.50 in all.", "so 10-5", "it is -$5", "12, 34", "-", r"\frac{3}{4}", "on 3/4")]
    ['1200.50', '5', '-5', '34', 'None', '3/4', '3/4']
    """
    text = _plain(text)
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    above, _, below = (part.strip("$ ") for part in last.group().replace(",", "").replace("-$", "-").partition("/"))
    if below and text[last.start() - 1 : last.start()] == "/":  # a date
        return Decimal(below)
    return Fraction(Decimal(above)) / int(below) if below and int(below) else Decimal(above)


def _plain(text: str) -> str:
    """Write LaTeX's numbers as plain ones, and the long minus as a short one."""
    text = text.replace("\u2212", "-")
    if "\\" not in text and "{,}" not in text:
        return text
    text = _FRACTION.sub(r"\1/\2", text)
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")


def numeric_match(text: str, gold: str) -> Score:
    """Score the equality by value of the last number of `text` and the last number of `gold`.

    >>> numeric_match("it costs $15", "... #### 15.00").value, numeric_match("no idea", "#### 15").value
    (1.0, 0.0)
    """
    wanted, read = last_number(gold), last_number(text)
    if wanted is None:
        return Score.unscored("the gold answer holds no number")
    if read is None:
        return Score.of(False, "", f"no number in the response, gold {shown(str(wanted))}")
    return Score.of(read == wanted, str(read), f"read {shown(str(read))}, gold {shown(str(wanted))}")
