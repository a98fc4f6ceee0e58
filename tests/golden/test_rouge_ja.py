"""ROUGE-1, ROUGE-2 and ROUGE-L F1 of Japanese texts against the package ``rouge-score`` on the same morphemes.

It is given them twice: through a tokenizer of ours, and as plain text of made-up words, one for each morpheme, which its own
tokenizer cuts. Texts are drawn from an alphabet, and from sentences cut and mixed: our samples and, where they are, real ones.
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import both

from plr.scoring import japanese
from plr.scoring.by_name import METRICS

pytest.importorskip("fugashi", reason="the extra ja is not installed")
pytest.importorskip("unidic_lite", reason="the extra ja is not installed")
scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")

NAMES = ["rouge1", "rouge2", "rougeL"]
TEXTS = st.text(alphabet="犬猫が々いるはない。、ー東京都ラーメンabＡＢ12１ \n！ｱ", max_size=24)


class _Morphemes:
    def tokenize(self, text: str) -> list[str]:
        return japanese.morphemes(text)


THROUGH_TOKENIZER = scorer.RougeScorer(NAMES, tokenizer=_Morphemes())
ITS_OWN = scorer.RougeScorer(NAMES, use_stemmer=False)


def _compare(answer: str, gold: str) -> None:
    ours = {name: METRICS[f"{name}_ja"].score(answer, gold).value for name in NAMES}
    words: dict[str, str] = {}
    spelled = [" ".join(words.setdefault(m, f"w{len(words)}") for m in japanese.morphemes(t)) for t in (gold, answer)]
    for theirs in (THROUGH_TOKENIZER.score(gold, answer), ITS_OWN.score(*spelled)):
        wanted = {name: value.fmeasure for name, value in theirs.items()}
        if not japanese.morphemes(gold):
            assert ours == dict.fromkeys(NAMES)  # no words in the gold: not scored, where rouge-score says 0
            assert wanted == dict.fromkeys(NAMES, 0)
        else:
            assert ours == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(TEXTS, TEXTS)
def test_random_texts(answer: str, gold: str) -> None:
    _compare(answer, gold)


def _sentences(file: Path) -> list[str]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:300]]
    return [row[name] for row in rows for name in ("sentence1", "sentence2")]


@pytest.mark.parametrize("file", both("jglue/jnli-valid-v1.3.json"))
def test_sentences(file: Path) -> None:
    """Pairs of one row, of two rows, and pieces put together anew: three times as many pairs as rows."""
    drawn, sentences = random.Random(0), _sentences(file)
    for one, other in zip(sentences[::2], sentences[1::2], strict=True):
        _compare(one, other)
        _compare(one, drawn.choice(sentences))
        _compare(one[drawn.randrange(len(one)) :] + other, other[: drawn.randrange(1, len(other) + 1)])


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_morphemes_are_the_text_cut_in_pieces(text: str) -> None:
    """Nothing is lost or changed but width, case and white space."""
    assert "".join(japanese.morphemes(text)) == "".join(unicodedata.normalize("NFKC", text).lower().split())
