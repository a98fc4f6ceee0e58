"""One reader of text and of JSON lines, whatever the file is for: rows, calibration, running text."""

from __future__ import annotations

import codecs
import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from plr.errors import DataError

__all__ = ["json_lines", "json_value", "read_text", "without_nan"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Marks at the head of a file, the longer ones first where one begins like another."""


def read_text(path: Path) -> str:
    """Read a file as UTF-8, or as what its byte-order mark says; ends of lines are as they stand.

    Raises:
        DataError: it cannot be read, is no regular file, or holds bytes of another encoding: by line and byte.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file", expected="a file of text")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not {encoding.removesuffix('-sig').upper()} text (byte {error.start})",
            expected="UTF-8, or UTF-16 with its mark",
            hint="save it as UTF-8, e.g. iconv -f latin1 -t utf-8 FILE",
        ) from error


def json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """Read one JSON value a line, each with its place; empty lines are no rows, and only a line feed ends one.

    Raises:
        DataError: as `read_text`, or a line that is no JSON.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield json_value(line, where, "one JSON object a line"), where


def json_value(text: str, where: str, expected: str, hint: str | None = None) -> object:
    """Parse JSON that stands at `where`.

    Raises:
        DataError: no JSON, a key that stands twice in one object, or nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise DataError(f"{where}: not JSON ({error})", expected=expected, hint=hint) from error


def without_nan(value: Any) -> Any:
    """Return a JSON value with null in place of numbers that are not finite, for which JSON has no word.

    >>> without_nan({"a": [1.5, float("nan")]})
    {'a': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value)
        return {key: without_nan(item) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return value
