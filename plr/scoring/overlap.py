"""Overlap of two texts: ROUGE-N and ROUGE-L on lists of tokens.

ROUGE (Lin 2004) as the package `rouge-score` computes it for one reference, without a stemmer:

- ROUGE-N: n-grams that both texts have, each as often as in the text that has it less often, over the n-grams of the answer
  (precision) and of the gold (recall); the value is their harmonic mean.
- ROUGE-L: the same with the length of the longest common subsequence of tokens.

No n-gram on one side gives 0. Tokens are the caller's: `words` cuts as `rouge-score` does (lower case, runs of a-z and
0-9), which finds nothing in Japanese; there a morphological analyser must cut (`plr.scoring.japanese`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["MAX_TOKENS", "f1", "lcs_length", "rouge_l", "rouge_n", "words"]

MAX_TOKENS = 4096
"""The longest common subsequence takes time by the product of both lengths: of a longer text the first tokens are read."""
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Split into the tokens of `rouge-score` without a stemmer.

    >>> words("The ducks' 16 eggs.")
    ['the', 'ducks', '16', 'eggs']
    """
    return _WORD.findall(text.lower())


def rouge_n(answer: Sequence[str], gold: Sequence[str], n: int) -> float:
    """Compute the F1 of the n-grams of two token lists.

    >>> round(rouge_n(["a", "b", "c"], ["a", "b", "d"], 2), 3)
    0.5
    """
    ours, theirs = _ngrams(answer, n), _ngrams(gold, n)
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Compute the F1 of the longest common subsequence.

    >>> rouge_l(["a", "x", "b"], ["a", "b", "y"]) == 2 / 3
    True
    """
    answer, gold = answer[:MAX_TOKENS], gold[:MAX_TOKENS]
    return f1(lcs_length(answer, gold), len(answer), len(gold))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Compute the length of the longest common subsequence: one addition for each token of `a` (Crochemore et al. 2001).

    A zero at place `j` of `row` says that the table's row grows at token `j` of `b`; a carry moves it to where `x` is.
    """
    places: dict[str, int] = {}
    for j, y in enumerate(b):
        places[y] = places.get(y, 0) | 1 << j
    full = row = (1 << len(b)) - 1
    for x in a:
        matches = row & places.get(x, 0)
        row = (row + matches | row - matches) & full
    return len(b) - row.bit_count()


def f1(both: int, ours: int, theirs: int) -> float:
    """Compute the harmonic mean of `both / ours` and `both / theirs`; 0 where nothing is shared."""
    return 2 * both / (ours + theirs) if both else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
