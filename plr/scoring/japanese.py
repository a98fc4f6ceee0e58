# pyright: basic
"""Japanese text cut into morphemes by MeCab: fugashi with the dictionary unidic-lite (the extra `ja`).

Japanese is written without spaces, so ROUGE on it means nothing until the text is cut, and every cutter gives other numbers:
a ROUGE without its analyser and dictionary is not comparable. Here it is MeCab with unidic-lite, surface forms, after Unicode
normalization NFKC (full and half width are one) and in lower case.

MeCab is C code, and what it is given is bounded here: a NUL byte would end the text for it, half of a surrogate pair is no text,
and of a million characters without a space it takes minutes or dies. So the first separates as white space does, the second is
read as `?`, and of a longer text the first MAX_CHARS characters count.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from plr.errors import MissingDependencyError

__all__ = ["MAX_CHARS", "morphemes"]

MAX_CHARS = 1 << 15
"""Length of a text after normalization; a summary has hundreds."""


def morphemes(text: str) -> list[str]:
    """List the surface forms of `text`, in order; white space separates and is no token.

    Raises:
        MissingDependencyError: the extra `ja` is not installed.
    """
    text = unicodedata.normalize("NFKC", text).lower()[:MAX_CHARS]
    text = text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    return [word.surface for word in _tagger()(text)]


@lru_cache(maxsize=1)
def _tagger() -> Any:
    try:
        import fugashi  # pyright: ignore[reportMissingImports]
        import unidic_lite  # noqa: F401 - found by fugashi  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"Japanese text cannot be cut into words: {error.name} is not installed",
            expected="fugashi and unidic-lite, the analyser and dictionary that the scores are defined by",
            hint="pip install 'plr[ja]'",
        ) from error
    return fugashi.Tagger("-Owakati")  # pyright: ignore[reportAttributeAccessIssue]
