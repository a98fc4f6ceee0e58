"""ROUGE: against the package rouge-score, on English and on Japanese morphemes; a clear error without the analyser."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr.errors import MissingDependencyError
from plr.scoring import japanese
from plr.scoring.overlap import lcs_length, rouge_l, rouge_n, words
from plr.tasks import Example, Response, TaskData, tasks

TOKENS = st.lists(st.sampled_from("abcde"), max_size=12)
ROWS = [
    ("米ワシントン州で2日、新型コロナウイルスによる新たな死者が4人報告された。", "ワシントン州で死者が4人増えた。"),
    ("犬がいる。", "犬がいる。"),
    ("空は青い。", "海は広い。"),
    ("ＡＢＣ社の株価", "abc社の株価が上がった"),
]


def subsequences(tokens: list[str]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = {()}
    for token in tokens:
        found |= {(*one, token) for one in found}
    return found


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_the_longest_common_subsequence_by_listing_all(a: list[str], b: list[str]) -> None:
    assert lcs_length(a, b) == max(map(len, subsequences(a) & subsequences(b)))


@given(TOKENS, TOKENS)
def test_rouge_is_symmetric_and_one_only_for_the_same(a: list[str], b: list[str]) -> None:
    for rouge in (partial(rouge_n, n=1), partial(rouge_n, n=2), rouge_l):
        assert 0 <= rouge(a, b) == rouge(b, a) <= 1
    assert (rouge_l(a, b) == 1) == (a == b and bool(a))


def test_agreement_with_rouge_score_on_words() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    generator = random.Random(0)
    vocabulary = ["the", "Duck's", "16", "eggs,", "a-b", "laid", "...", "Ünder"]
    for _ in range(300):
        a, b = (" ".join(generator.choices(vocabulary, k=generator.randrange(12))) for _ in range(2))
        wanted = theirs.score(b, a)
        ours = {
            "rouge1": rouge_n(words(a), words(b), 1),
            "rouge2": rouge_n(words(a), words(b), 2),
            "rougeL": rouge_l(words(a), words(b)),
        }
        assert ours == pytest.approx({name: value.fmeasure for name, value in wanted.items()})


def test_agreement_with_rouge_score_on_morphemes() -> None:
    pytest.importorskip("fugashi", reason="the extra ja is not installed")
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")

    class Morphemes:
        def tokenize(self, text: str) -> list[str]:
            return japanese.morphemes(text)

    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Morphemes())
    task = tasks.get("xlsum_ja")
    for answer, gold in ROWS:
        row = {"text": "本文", "summary": gold}
        scores = task.score(Example("test-0", row, task.prompt(row), task.target(row)), Response(answer, ended=True))
        wanted = {name: value.fmeasure for name, value in theirs.score(gold, answer).items()}
        assert {name: scores[name].value for name in wanted} == pytest.approx(wanted)
    assert japanese.morphemes("犬がいる。") == ["犬", "が", "いる", "。"]


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fugashi", None)
    japanese._tagger.cache_clear()
    with pytest.raises(MissingDependencyError, match="fugashi is not installed") as caught:
        japanese.morphemes("犬")
    assert "plr[ja]" in str(caught.value.hint)
    japanese._tagger.cache_clear()


def test_form_and_boundary(tmp_path: Path) -> None:
    (tmp_path / "japanese_test.jsonl").write_text(
        '{"text": "本文。", "summary": "要約。", "title": "題"}\n', encoding="utf-8"
    )
    task = tasks.get("xlsum_ja")
    (row,) = task.load("test", TaskData(str(tmp_path))).examples
    assert row.prompt + row.target == "本文。[SEP]要約。"
    assert task.boundary(" 要約。\n続き\n\n別[SEP]x") == "要約。\n続き"
