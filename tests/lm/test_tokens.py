"""The boundary between prompt and target, and the tokens that end an answer."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from tokenizers import processors

from plr.errors import DataError, ModelError
from plr.lm import encode_pair
from plr.lm.tokens import decode, encode_prompt, end_tokens


def test_pair_is_bos_prompt_target_eos(tokenizer):
    prompt, target = encode_pair(tokenizer, "ab", "c")
    assert tokenizer.convert_ids_to_tokens(prompt + target) == ["<s>", "a", "b", "c", "</s>"]
    assert prompt == encode_prompt(tokenizer, "ab"), "the prompt must be the one that generation sees"


def test_prompt_that_spells_its_bos_out_gets_no_second_one(tokenizer):
    assert encode_prompt(tokenizer, "<s>ab") == encode_prompt(tokenizer, "ab")


def test_eos_that_a_tokenizer_appends_is_no_part_of_a_prompt(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("ab").input_ids[-1] == 2
    prompt, target = encode_pair(tokenizer, "ab", "c")
    assert tokenizer.convert_ids_to_tokens(prompt + target) == ["<s>", "a", "b", "c", "</s>"]
    assert encode_prompt(tokenizer, "ab</s>")[-1] == 2, "an EOS that the prompt spells out stays"


def test_tokenizer_without_eos_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no EOS token"):
        encode_pair(tokenizer, "a", "b")


@pytest.mark.parametrize(("prompt", "target"), [("a\ud800b", "c"), ("a", "\udfff")])
def test_half_of_a_surrogate_pair_is_refused(tokenizer, prompt, target):
    """JSON can spell one, and no tokenizer reads it."""
    with pytest.raises(DataError, match=r"half of a surrogate pair, U\+D"):
        encode_pair(tokenizer, prompt, target)


@pytest.mark.parametrize(("declared", "expected"), [(None, {2}), (7, {2, 7}), ([2, 9, 11], {2, 9, 11})])
def test_ends_are_those_of_tokenizer_and_generation_config(declared, expected, tokenizer):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=declared))
    assert end_tokens(model, tokenizer) == expected


def test_decoding_keeps_spaces_before_punctuation(tokenizer):
    cleaning = copy.deepcopy(tokenizer)
    cleaning.clean_up_tokenization_spaces = True
    assert decode(cleaning, encode_prompt(cleaning, "a . b")) == "a . b"
