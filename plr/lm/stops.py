"""Stop strings, found while text grows, at the price of one dictionary look-up a token.

A stop string can only be completed by a token whose text holds the string's last character. Which tokens do is found
out the first time each is seen. Only then is the row's text decoded and searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plr.errors import UsageError
from plr.lm.tokens import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["StopStrings"]


class StopStrings:
    """The stop strings of one run of `generate`.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        if isinstance(stop, str):
            stop = (stop,)
        if "" in stop:
            raise UsageError(
                "a stop string is empty",
                expected="strings of one character or more",
                hint='leave it out, or name the text that ends an answer, such as "\\n"',
            )
        self.tokenizer = tokenizer
        self.strings = tuple(stop)
        self._last = frozenset(s[-1] for s in self.strings)
        # Decoders add and strip spaces between tokens, so any token may complete a stop that ends with a space.
        self._any_token = " " in self._last
        self._may_complete: dict[int, bool] = {}

    def may_complete(self, token: int) -> bool:
        """Tell whether `token` can be the one that completes a stop string; False is certain, True is not."""
        known = self._may_complete.get(token)
        if known is None:
            text = decode(self.tokenizer, [token])
            # U+FFFD: the bytes of half a character, which the next token may complete.
            known = self._any_token or "\ufffd" in text or any(c in text for c in self._last)
            self._may_complete[token] = known
        return known

    def find(self, text: str) -> tuple[str, str] | None:
        """Find `(text before the stop string, the stop string)` for the one that comes first in `text`, else None."""
        hits = [(at, i) for i, s in enumerate(self.strings) if (at := text.find(s)) >= 0]
        if not hits:
            return None
        at, i = min(hits)
        return text[:at], self.strings[i]

    def cut(self, ids: list[int]) -> bool:
        """Tell whether the text of `ids`, the last of which is new, holds a stop string."""
        return self.may_complete(ids[-1]) and self.find(decode(self.tokenizer, ids)) is not None
