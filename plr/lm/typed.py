"""Types for the parts of a tokenizer that `plr.lm` uses and that transformers declares none for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Tokenizer", "typed"]


class Tokenizer(Protocol):
    """A tokenizer of transformers with its special tokens."""

    bos_token: str | None
    eos_token: str | None
    eos_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int
    name_or_path: str

    def __call__(
        self, text: str | Sequence[str], pair: Sequence[str | None] | None = None, /, **options: bool
    ) -> Mapping[str, Any]: ...
    def decode(self, ids: list[int], **options: bool) -> str: ...


def typed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Read `tokenizer` with the types of its special tokens."""
    return cast(Tokenizer, tokenizer)
