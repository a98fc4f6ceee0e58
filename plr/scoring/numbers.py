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
has none of these three faults; it is ours, and is reported under its own name. It reads plain decimal numbers in ASCII, as
lm-eval does: of `1.5e3` it reads 3, of `3/4` it reads 4, and the long minus of typesetting is no sign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

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
_NUMBER = re.compile(_SIGN + r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)")


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


def exact_match(answer: str, gold: str) -> Score:
    """Score `answer`, as a filter read it, against `gold`, the whole target."""
    read, wanted = normalize_answer(answer), normalize_answer(gold)
    if answer == INVALID:
        return Score.of(read == wanted, answer, "no answer in the expected form")
    return Score.of(read == wanted, answer, f"read {shown(read)!r}, gold {shown(wanted)!r}")


def last_number(text: str) -> Decimal | None:
    """Find the last number of `text`; `$` and the commas of thousands are read through.

    A minus is a sign unless something stands before it that can be subtracted from: `10-5` ends in 5, `= -5` in -5.

    >>> [str(last_number(text)) for text in ("$1,200.50 in all.", "so 10-5", "it is -$5", "12, 34", "-")]
    ['1200.50', '5', '-5', '34', 'None']
    """
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("$", "")) if numbers else None


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
