"""The result of scoring one response under one metric."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Score", "shown"]


@dataclass(frozen=True)
class Score:
    """The score of one row under one metric.

    `value` is in the metric's unit (of a percentage a fraction in [0, 1]), or None where the row cannot be scored: it then
    leaves the mean, and `explanation` says why.

    `answer` is what the scorer read out of the response, in the form in which it was compared.

    >>> Score.of(True, "72", "equal"), Score.unscored("the gold holds no number").value
    (Score(value=1.0, answer='72', explanation='equal'), None)
    """

    value: float | None
    answer: str
    explanation: str

    @classmethod
    def of(cls, correct: bool, answer: str, explanation: str) -> Score:
        return cls(float(correct), answer, explanation)

    @classmethod
    def unscored(cls, reason: str, answer: str = "") -> Score:
        return cls(None, answer, reason)


def shown(text: str, most: int = 80) -> str:
    """Shorten `text` for an explanation: at most `most` characters.

    >>> shown("one two three", 8)
    'one t...'
    """
    return text if len(text) <= most else text[: most - 3] + "..."
