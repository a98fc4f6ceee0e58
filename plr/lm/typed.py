"""Types for the parts of a tokenizer that `plr.lm` uses and that transformers declares none for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
    from transformers.cache_utils import DynamicCache

__all__ = ["Generating", "Prompted", "Tokenizer", "typed"]


class Tokenizer(Protocol):
    """A tokenizer of transformers with its special tokens."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int
    name_or_path: str

    def __call__(
        self, text: str | Sequence[str], pair: Sequence[str | None] | None = None, /, **options: bool
    ) -> Mapping[str, Any]: ...
    def decode(self, ids: list[int], **options: bool) -> str: ...


class Generating(Protocol):
    """A model with the generation of transformers."""

    def generate(self, **options: object) -> Tensor: ...


class Prompted(Protocol):
    """A model with virtual tokens of PEFT before its text."""

    def get_prompt(self, batch_size: int) -> Tensor | DynamicCache: ...


def typed(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Read `tokenizer` with the types of its special tokens."""
    return cast(Tokenizer, tokenizer)
