"""Metrics that a task file names: each compares the answer that was read with the gold answer, both as text.

===================================  ================================================================
`exact_match`                      string equality after strip
`exact_match_folded`               the same with case folded and runs of white space as one space
`contains`                         the gold stands in the answer
`numeric_match`                    the last number of each, by value (`plr.scoring.numbers`)
`sql_match`                        SQL in canonical form (`plr.scoring.sql.match`)
`rouge1 rouge2 rougeL`             ROUGE F1 (`plr.scoring.overlap`)
`rouge1_ja rouge2_ja rougeL_ja`    the same on Japanese morphemes (`plr.scoring.japanese`)
===================================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from plr.scoring.japanese import morphemes
from plr.scoring.metric import Metric, metric_named
from plr.scoring.numbers import numeric_match
from plr.scoring.overlap import rouge_l, rouge_n, words
from plr.scoring.score import Score, shown
from plr.scoring.sql.match import normalized_match

__all__ = ["METRICS", "NamedMetric"]

_short = partial(shown, most=200)


class NamedMetric(NamedTuple):
    """A scorer and the metric that it measures: `score(answer, gold)`."""

    score: Callable[[str, str], Score]
    metric: Metric

    @property
    def binary(self) -> bool:
        """An answer is right or wrong and nothing between."""
        return self.metric.proportion


def _exact(answer: str, gold: str) -> Score:
    equal = answer.strip() == gold.strip()
    return Score.of(equal, _short(answer.strip()), "equal" if equal else f"gold: {_short(gold.strip())}")


def _folded(answer: str, gold: str) -> Score:
    ours, theirs = (" ".join(text.casefold().split()) for text in (answer, gold))
    return Score.of(ours == theirs, _short(ours), "equal" if ours == theirs else f"gold: {_short(theirs)}")


def _contains(answer: str, gold: str) -> Score:
    contained = gold.strip() in answer
    return Score.of(
        contained, _short(answer.strip()), f"the gold {_short(gold.strip())!r} {'is' if contained else 'is not'} in it"
    )


def _overlap(answer: str, gold: str, *, kind: str, cut: Callable[[str], list[str]]) -> Score:
    ours, theirs = cut(answer), cut(gold)
    if not theirs:
        return Score.unscored("the gold holds no words")
    value = rouge_l(ours, theirs) if kind == "L" else rouge_n(ours, theirs, int(kind))
    return Score(value, _short(" ".join(ours)), f"{len(ours)} words against {len(theirs)} of the gold")


_SCORERS: Mapping[str, Callable[[str, str], Score]] = {
    "exact_match": _exact,
    "exact_match_folded": _folded,
    "contains": _contains,
    "numeric_match": numeric_match,
    "sql_match": normalized_match,
    **{f"rouge{kind}": partial(_overlap, kind=kind, cut=words) for kind in "12L"},
    **{f"rouge{kind}_ja": partial(_overlap, kind=kind, cut=morphemes) for kind in "12L"},
}
METRICS: Mapping[str, NamedMetric] = {name: NamedMetric(score, metric_named(name)) for name, score in _SCORERS.items()}
