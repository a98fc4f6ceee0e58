"""What MeCab must not be given as it is: text with NUL bytes, half surrogate pairs, and text without end."""

from __future__ import annotations

import pytest

from plr.scoring.japanese import MAX_CHARS, morphemes

pytest.importorskip("fugashi", reason="the extra ja is not installed")
pytest.importorskip("unidic_lite", reason="the extra ja is not installed")


def test_a_nul_byte_separates_and_does_not_end_the_text() -> None:
    assert morphemes("犬がいる。\0猫がいる。") == morphemes("犬がいる。") + morphemes("猫がいる。")
    assert morphemes("\0") == []


@pytest.mark.parametrize("text", ["\ud800犬", "犬\udfff"])
def test_half_a_surrogate_pair_is_one_unknown_token(text: str) -> None:
    assert sorted(morphemes(text)) == ["?", "犬"]


@pytest.mark.parametrize("text", ["犬" * 10**6, "\ufdfa" * 10**5], ids=["a million characters", "NFKC makes 18 of one"])
def test_of_a_text_without_end_the_first_characters_are_read(text: str) -> None:
    found = morphemes(text)
    assert 0 < sum(map(len, found)) <= MAX_CHARS
    assert found[:9] == morphemes(text[:9])[:9]
