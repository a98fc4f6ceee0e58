"""SQL answers compared by what they return, with the semantics of Spider's test suites (Zhong et al. 2020).

A data set that has no table contents gets some: ten small databases are made for each sample from its CREATE TABLE
statements and the literals of the gold (`plr.scoring.sql.databases`). An answer is right if it returns on every
one of them what the gold returns (`plr.scoring.sql.compare`): a bag of rows, columns in any order; rows in order
only where the gold has ORDER BY.

A sample is undecidable, its score None, where the gold does not run or returns nothing on all databases. The
explanation of a wrong answer begins with its kind: `parse error`, `missing table or column`, `forbidden`,
`timeout`, `too large`, `crash` or `result mismatch`.

What this is worth: a wrong verdict "equal" needs ten databases that all miss the difference; a wrong verdict
"mismatch" needs a difference that real tables never show, since columns of the same row are drawn apart. Queries run in
processes of their own, in a sandbox (`plr.scoring.sql.sandbox`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plr.scoring.score import Score
from plr.scoring.sql.judge import Verdict
from plr.scoring.sql.pool import Sample, shared_pool
from plr.scoring.sql.sandbox import MAX_CHARS

__all__ = ["Sample", "exec_match", "exec_match_all", "exec_matches"]

_SHOWN = 200


def exec_match(answer: str, gold: str, context: str, *, seed: int = 0) -> Score:
    """Tell whether `answer` returns what `gold` returns on databases of `context`.

    >>> context = "CREATE TABLE head (name VARCHAR, age INTEGER)"
    >>> exec_match("SELECT name FROM head WHERE 56 < age", "SELECT name FROM head WHERE age > 56", context).value
    1.0
    >>> exec_match("SELECT title FROM head", "SELECT name FROM head", context).explanation
    'missing table or column: no such column: title'
    """
    return exec_match_all([Sample(context, gold, answer, seed)])[0]


def exec_match_all(samples: Sequence[Sample]) -> list[Score]:
    """Score many samples at once as `exec_match` does, on several processes.

    Raises:
        ResourceError: the processes do not start. Nothing that an answer says raises.
    """
    return list(exec_matches(samples))


def exec_matches(samples: Sequence[Sample]) -> Iterator[Score]:
    """Yield the scores of `exec_match_all`, begun at once, one by one: the caller's own work goes on beside it."""
    short = [sample._replace(answer=sample.answer[: MAX_CHARS + 1]) for sample in samples]  # more is refused, not sent
    return map(_score, samples, shared_pool().verdicts(short))


def _score(sample: Sample, verdict: Verdict) -> Score:
    explanation, answer = f"{verdict.kind}: {verdict.detail}", sample.answer.strip()[:_SHOWN]
    if verdict.kind == "undecidable":
        return Score.unscored(explanation, answer)
    return Score.of(verdict.kind == "equal", answer, explanation)
