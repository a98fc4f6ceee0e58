"""Canonical JSON and the fingerprint of a value.

A fingerprint is the sha256 of one canonical spelling: keys sorted, no white space, integers and floats kept apart,
text as UTF-8. What has no canonical spelling (NaN, sets, bytes, arbitrary objects) raises: an identity that is guessed is
worse than none.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

__all__ = [
    "JsonObject",
    "canonical_json",
    "file_sha256",
    "fingerprint",
    "folder_sha256",
    "is_json",
    "known_sha256",
    "text_sha256",
]

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as Python has it: settings, the metrics of a manifest, what `--json` prints."""
_CHUNK = 1 << 20
_Identity: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, and the times (ns) at which contents and inode last changed."""
_TICK = 20_000_000
"""Nanoseconds: the clock of a file system moves in steps, of up to 10 ms on Linux."""
_known: dict[_Identity, str] = {}


def canonical_json(value: object) -> str:
    """Write `value` in its one canonical spelling.

    Raises:
        TypeError: the value (or a part of it, named by its path) is not JSON.
        ValueError: a float that is not finite, or a key that is not text.

    >>> canonical_json({"b": 1, "a": [True, None, 0.5]})
    '{"a":[true,null,0.5],"b":1}'
    """
    return json.dumps(_checked(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def is_json(value: object) -> bool:
    """Tell whether `json.dumps` can write `value`.

    >>> is_json({"a": [1, None]}), is_json({1, 2})
    (True, False)
    """
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def fingerprint(value: object) -> str:
    """Return the sha256 of the canonical spelling, 64 hex digits.

    >>> fingerprint({"a": 1}) == fingerprint({"a": 1}) != fingerprint({"a": 1.0})
    True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """Hash a file once a process: again only if its inode, size or one of its times has changed since.

    Raises:
        OSError: it cannot be read.
    """
    identity = _identity(path)
    if identity not in _known:
        digest = file_sha256(path)
        if _identity(path) != identity or time.time_ns() - identity[-1] < _TICK:
            return (
                digest  # it changes as it is read, or may yet change within one tick of its clock: nothing to remember
            )
        _known[identity] = digest
    return _known[identity]


def _identity(path: Path) -> _Identity:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def folder_sha256(folder: Path, *, patterns: tuple[str, ...] = ("*",)) -> str:
    """Compute one hash over names and contents of the files of a folder (not its sub-folders), sorted by name."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return fingerprint({path.name: known_sha256(path) for path in files})


def _checked(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: a fingerprint needs finite numbers")
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value)
        for key in items:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: keys must be text")
        return {key: _checked(item, f"{where}.{key}") for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, f"{where}[{i}]") for i, item in enumerate(cast("list[object]", value))]
    raise TypeError(f"{where} is a {type(value).__name__}: only JSON values have a fingerprint")


def text_sha256(text: str) -> str:
    """Hash a text as UTF-8; half a surrogate pair, which a field that no model reads may hold, as three bytes."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
