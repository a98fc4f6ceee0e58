"""Tokenization and its reverse, for training, generation and loss alike.

A prompt is tokenized alone, with the BOS its tokenizer adds, since at generation nothing follows it yet. A target has the
tokens that stand behind the prompt's in the tokens of the whole text, and ends with EOS. Where the whole text has a token
that spans prompt and target, the target has those that it has behind a newline. So no token ever spans the two, and a
tokenizer that puts a space before a text (SentencePiece) puts none between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from plr.errors import DataError, ModelError, UsageError
from plr.lm.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_room", "check_some", "decode", "encode_pair", "encode_prompt", "end_tokens", "windows"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Encode `prompt` as token ids, begun by BOS where the tokenizer adds one, never ended by EOS.

    A prompt that already spells its BOS out, as chat templates do, does not get a second one.

    Raises:
        DataError: half of a surrogate pair, which is no text.
    """
    _check_unicode(prompt)
    own = typed(tokenizer)
    bos, eos = own.bos_token, own.eos_token
    spelled = bool(bos) and prompt.startswith(bos)
    ids = list(own(prompt, add_special_tokens=not spelled)["input_ids"])
    if eos and not prompt.endswith(eos):
        while len(ids) > 1 and ids[-1] == own.eos_token_id:
            ids.pop()
    return ids


def windows(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], width: int) -> Iterator[list[int]]:
    """Cut the ids of a running text into windows of at most `width` tokens, none of them dropped.

    A text that begins with BOS has it at the start of every window: a model has seen no text without.
    """
    bos = typed(tokenizer).bos_token_id
    begin = list(ids[:1]) if bos is not None and width > 2 and list(ids[:1]) == [bos] else []
    step = width - len(begin)
    for at in range(len(begin), len(ids), step):
        yield [*begin, *ids[at : at + step]]


def check_some(ids: Sequence[int], name: int | str) -> None:
    """Refuse an empty prompt.

    Raises:
        DataError: prompt `name` has no token.
    """
    if not ids:
        raise DataError(
            f"prompt {name} has no token",
            expected="text, or a tokenizer that adds a BOS token",
            hint="remove the row or give it a prompt",
        )


def check_room(
    encoded: Sequence[Sequence[int]],
    positions: int | None,
    new: int,
    *,
    virtual: int = 0,
    names: Sequence[str] | None = None,
) -> None:
    """Refuse prompts that are empty, or leave no room for `new` tokens behind them and `virtual` ones before; `positions` None:
    there is no end.

    Raises:
        DataError: the first such prompt, by its name, or by its number from 0.
        UsageError: `new` tokens leave no room for any.
    """
    room = None if positions is None else positions - new - virtual
    if room is not None and room < 1:
        raise UsageError(
            f"max_new_tokens is {new}",
            expected=f"less than the {positions} positions of the model, for its prompt needs some too",
        )
    for name, ids in zip(names or range(len(encoded)), encoded, strict=True):
        check_some(ids, name)
        if room is not None and len(ids) > room:
            raise DataError(
                f"prompt {name} has {len(ids)} tokens",
                expected=f"at most {room}: {positions} positions less {new} new tokens"
                + (f" and {virtual} virtual tokens" if virtual else ""),
                hint="shorten the prompt, use fewer examples in it, or lower max_new_tokens; nothing is truncated",
            )


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Encode `(prompt ids, target ids + EOS)`: the one place that says how a training or scoring pair is tokenized.

    Raises:
        DataError: half of a surrogate pair, which is no text.
        ModelError: the tokenizer has no EOS token, so that a model could not learn to stop.
    """
    _check_unicode(target)
    own = typed(tokenizer)
    if own.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {own.name_or_path!r} has no EOS token",
            expected="an eos_token, which ends every target",
            hint="set eos_token in the model's tokenizer_config.json",
        )
    prompt_ids = encode_prompt(tokenizer, prompt)
    return prompt_ids, [*_behind(tokenizer, prompt_ids, prompt, target), own.eos_token_id]


def _behind(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], prompt: str, target: str) -> list[int]:
    """Encode `target` as it stands behind the prompt."""
    whole = encode_prompt(tokenizer, prompt + target)
    if prompt and whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    own = typed(tokenizer)
    line, text = (list(own(words, add_special_tokens=False)["input_ids"]) for words in ("\n", f"\n{target}"))
    if line and text[: len(line)] == line:
        return text[len(line) :]
    return list(own(target, add_special_tokens=False)["input_ids"])


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise DataError(
            f"{text[max(0, at - 20) : at + 20]!r} has half of a surrogate pair, U+{ord(text[at]):04X}",
            expected="Unicode text, which every tokenizer can read",
            hint="correct the row: its JSON was cut in the middle of a character",
        ) from error


def end_tokens(model: object, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """List the ids that end an answer: the tokenizer's EOS and `generation_config.eos_token_id` (an int or a list)."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = declared if isinstance(declared, list | tuple) else [declared]
    return frozenset(int(i) for i in (*ids, typed(tokenizer).eos_token_id) if i is not None)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode the text of generated `ids`, special tokens left out, spaces as the tokens have them."""
    return typed(tokenizer).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
