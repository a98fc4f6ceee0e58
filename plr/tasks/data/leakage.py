"""No row that is scored may have been seen: calibration and training rows are compared with validation and test.

Rows are compared by prompt, case and white space left out. Plain text is searched for the questions of held-out
rows by word n-grams: each question is filed under its first words and its length, each text slid over once, so that
thousands of questions against megabytes of text take seconds, also where all of them begin alike. A question of fewer
than six words counts only where it makes up the whole text: such words stand in innocent text too. In scripts without
spaces (Japanese, Chinese, Thai ...) each character is taken for half a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from plr.errors import LeakageError
from plr.tasks.data.splits import normalized
from plr.tasks.types import Example

__all__ = ["check_leakage", "check_text_leakage"]

_NAMED = 5
_ANCHOR = 6
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai and Lao, Burmese, Khmer, kana, Han."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_CHARACTER = re.compile(f"[{_UNSPACED}]")

HeldOut = Mapping[str, Sequence[Example]]
_Filed = dict[int, dict[tuple[str, ...], str]]
"""Number of words -> the words -> where they stand."""


def check_leakage(rows: Sequence[Example], held_out: HeldOut) -> None:
    """Compare `rows` (calibration, training) with the examples of the held-out splits.

    Raises:
        LeakageError: prompts that stand in both; the first are named, all are counted.
    """
    where = {
        normalized(example.prompt): f"{split} {example.id}"
        for split, examples in held_out.items()
        for example in examples
    }
    leaks = [(row.id, where[key]) for row in rows if (key := normalized(row.prompt)) in where]
    if leaks:
        _raise(leaks, f"{len(leaks)} of {len(rows)} rows for calibration or training")


def check_text_leakage(
    texts: Mapping[str, str], held_out: HeldOut, question: Callable[[Example], str] | None = None
) -> None:
    """Compare plain texts (id -> text) with the questions of the held-out splits.

    `question` gives the words of an example to look for; by default its field `question`, or else its prompt.

    Raises:
        LeakageError: texts that contain such a question; the first are named, all are counted.
    """
    words_of = question or _question
    by_anchor: dict[tuple[str, ...], _Filed] = {}
    short: dict[tuple[str, ...], str] = {}
    for split, examples in held_out.items():
        for example in examples:
            words, place = _words(words_of(example)), f"{split} {example.id}"
            if len(words) - sum(map(bool, map(_CHARACTER.match, words))) / 2 < _ANCHOR:
                short[tuple(words)] = place
            else:
                filed = by_anchor.setdefault(tuple(words[:_ANCHOR]), {})
                filed.setdefault(len(words), {}).setdefault(tuple(words), place)
    leaks: list[tuple[str, str]] = []
    for name, text in texts.items():
        words = _words(text)
        place = short.get(tuple(words)) or _contained(words, by_anchor)
        if place is not None:
            leaks.append((name, place))
    if leaks:
        _raise(leaks, f"{len(leaks)} of {len(texts)} calibration texts")


def _contained(words: list[str], by_anchor: Mapping[tuple[str, ...], _Filed]) -> str | None:
    for start in range(len(words) - _ANCHOR + 1):
        for length, wanted in by_anchor.get(tuple(words[start : start + _ANCHOR]), {}).items():
            if (place := wanted.get(tuple(words[start : start + length]))) is not None:
                return place
    return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _question(example: Example) -> str:
    return str(example.row["question"]) if "question" in example.row else example.prompt


def _raise(leaks: list[tuple[str, str]], what: str) -> None:
    named = ", ".join(f"{row} = {place}" for row, place in leaks[:_NAMED])
    rest = f" and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
    raise LeakageError(
        f"{what} stand in held-out splits: {named}{rest}",
        expected="rows that are in neither validation nor test",
        hint="remove them from the data, or draw from another split",
    )
