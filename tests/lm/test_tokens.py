"""The boundary between prompt and target, and the tokens that end an answer."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from plr.errors import DataError, ModelError
from plr.lm import encode_pair
from plr.lm.tokens import decode, encode_prompt, end_tokens, windows


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


def prepending(*words):
    """A tokenizer that puts a space before whatever it is given, as SentencePiece's do."""
    own = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    vocabulary, merges = ["<unk>", "<s>", "</s>", "\u2581", "\n", *sorted({c for word in words for c in word})], []
    for word in words:
        left = "\u2581"
        for character in word:
            merges.append((left, character))
            left += character
            vocabulary.append(left)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    own.model = models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True)
    own.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    own.add_special_tokens(["<unk>", "<s>", "</s>"])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("prompt", "target", "tokens"),
    [
        ("What is 12", " 42", ["\u258142"]),
        ("What is", " 12 42", ["\u258112", "\u258142"]),
        ("What\n", "is", ["i", "s"]),
        ("What ", "is", ["i", "s"]),
        ("Wh", "at", ["a", "t"]),
    ],
)
def test_a_target_has_the_tokens_it_has_behind_its_prompt(prompt, target, tokens):
    tokenizer = prepending("What", "is", "12", "42")
    prompt_ids, target_ids = encode_pair(tokenizer, prompt, target)
    assert prompt_ids == encode_prompt(tokenizer, prompt)
    assert tokenizer.convert_ids_to_tokens(target_ids) == [*tokens, "</s>"]


@pytest.mark.parametrize("width", [3, 4, 5, 100])
def test_every_window_of_a_text_begins_with_bos(tokenizer, width):
    ids = encode_prompt(tokenizer, "abcabcabcab")
    cut = list(windows(tokenizer, ids, width))
    assert all(window[0] == tokenizer.bos_token_id and 2 <= len(window) <= width for window in cut)
    assert [token for window in cut for token in window[1:]] == ids[1:]


def test_a_text_without_bos_is_cut_as_it_is(tokenizer):
    ids = encode_prompt(tokenizer, "abcabcabcab")[1:]
    assert list(windows(tokenizer, ids, 4)) == [ids[at : at + 4] for at in range(0, len(ids), 4)]
    assert list(windows(tokenizer, [], 4)) == []
