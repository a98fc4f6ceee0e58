"""ROUGE-L's subsequence, against the table of the textbook."""

from __future__ import annotations

import random
from collections.abc import Sequence

from plr.scoring.overlap import MAX_TOKENS, lcs_length, rouge_l


def table(a: Sequence[str], b: Sequence[str]) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    drawn = random.Random(0)
    for _ in range(500):
        letters = "abcdefgh"[: drawn.randint(1, 8)]
        a, b = ([drawn.choice(letters) for _ in range(drawn.randint(0, 90))] for _ in range(2))
        assert lcs_length(a, b) == lcs_length(b, a) == table(a, b)


def test_of_a_longer_text_the_first_tokens_are_read() -> None:
    same = ["a"] * MAX_TOKENS
    assert rouge_l([*same, *"bcd"], [*same, *"efg"]) == 1.0
