"""Stop strings are found at the token that completes them, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plr.lm.stops import StopStrings
from plr.lm.tokens import decode


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: characters beyond ASCII are spread over several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


TOKENIZER = byte_tokenizer()


@given(st.text("ab é\n答", max_size=12), st.lists(st.text("ab é\n答", min_size=1, max_size=3), min_size=1, max_size=3))
def test_cut_is_true_exactly_when_a_stop_string_is_complete(text, stop):
    stops = StopStrings(TOKENIZER, stop)
    ids = TOKENIZER(text).input_ids
    for end in range(1, len(ids) + 1):
        so_far = decode(TOKENIZER, ids[:end])
        if any(s in so_far for s in stop):
            assert stops.cut(ids[:end])
            before, which = stops.find(so_far)
            assert so_far.startswith(before + which)
            assert not any(s in before for s in stop)
            return
        assert not stops.cut(ids[:end])


def test_text_is_decoded_only_at_tokens_that_may_complete_a_stop(monkeypatch):
    stops = StopStrings(TOKENIZER, ["\nQ:"])
    ids = TOKENIZER("a long answer without an end").input_ids
    for end in range(1, len(ids) + 1):
        stops.cut(ids[:end])
    monkeypatch.setattr("plr.lm.stops.decode", lambda *_: pytest.fail("decoded again"))
    for end in range(1, len(ids) + 1):
        assert not stops.cut(ids[:end])


def test_a_single_string_is_one_stop_string():
    assert StopStrings(TOKENIZER, "end").strings == ("end",)
