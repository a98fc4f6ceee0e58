"""The manifest of an artifact: what was made, of what, and the size and sha256 of every file.

How a manifest is sealed: it is JSON whose last line is `"sha256"`, the hash of all bytes before that line, and whose first key,
`"format"`, says that this line must be there. So a change of any bit is found: in what is sealed by the hash, in the seal by
its own form, in the first key because no other key may stand in its place. Manifests from before have neither line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError, field_validator

from plr.core.files import write_atomic
from plr.core.fingerprint import JsonObject
from plr.core.specs import KINDS
from plr.errors import IntegrityError, PlrError

__all__ = [
    "MANIFEST",
    "FileRecord",
    "Manifest",
    "SourceManifest",
    "read_manifest",
    "read_source_manifest",
    "write_manifest",
]

MANIFEST = "manifest.json"
FORMAT = 2
_LARGEST = 256 << 20
"""Bytes. One of a base of a thousand layers has about one MB."""
_SEAL = re.compile(rb'\A\{\n "format": 2,\n(?P<body>.*),\n "sha256": "(?P<seal>[0-9a-f]{64})"\n\}\Z', re.DOTALL)
_SEAL_LENGTH = len(b',\n "sha256": ""\n}') + 64

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Form = TypeVar("_Form", bound="_Files")


class _Strict(BaseModel, frozen=True, extra="forbid", strict=True):
    """A part of a manifest; nothing is converted and nothing left over."""


class FileRecord(_Strict, frozen=True):
    """A file as it was committed."""

    sha256: Sha256
    size: int = Field(ge=0)


class InputRecord(_Strict, frozen=True):
    """An artifact that went into this one."""

    kind: str
    fingerprint: Sha256
    label: str


class _Files(_Strict, frozen=True):
    """The part of every manifest that says which files there are."""

    format: Literal[2] | None = None
    files: dict[str, FileRecord]
    provenance: JsonObject
    sha256: Sha256 | None = None

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in value:
            if not _is_inside(name):
                raise ValueError(f"{name[:80]!r} is no name of a file inside the folder")
        return value


class SourceManifest(_Files, frozen=True):
    """All that is on record of a copy of a source."""

    label: str
    key: JsonObject
    """Its source, its form, and what made it."""


class Manifest(_Files, frozen=True):
    """All that is on record of an artifact."""

    kind: str
    fingerprint: Sha256
    label: str
    step: JsonObject
    inputs: list[InputRecord]
    metrics: JsonObject
    seconds: float = Field(ge=0, allow_inf_nan=False)

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"{value[:20]!r} is none of {', '.join(KINDS)}")
        return value

    @field_validator("provenance")
    @classmethod
    def _dated(cls, value: JsonObject) -> JsonObject:
        if _timestamp(value.get("date")) is None:
            raise ValueError("date is no date with a time zone")
        return value

    @cached_property
    def timestamp(self) -> float:
        """Date of the commit, in seconds since 1970."""
        return _timestamp(self.provenance["date"]) or 0.0


def _timestamp(date: object) -> float | None:
    try:
        found = datetime.fromisoformat(date) if isinstance(date, str) else None
        return None if found is None or found.tzinfo is None else found.timestamp()
    except (ValueError, OverflowError):
        return None


def _is_inside(name: str) -> bool:
    """Tell a plain relative name, as the commit writes it, from all others.

    >>> [_is_inside(name) for name in ("a/b.json", "", "/etc", "../a", "a//b", "a/./b", "a\\0b", "manifest.json")]
    [True, False, False, False, False, False, False, False]
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= 255 for part in parts)
    return plain and name != MANIFEST and "\0" not in name and PurePosixPath(name).as_posix() == name


def read_manifest(path: Path) -> tuple[Manifest, JsonObject]:
    """Read and check a manifest; return it, and the JSON object that it is.

    Raises:
        IntegrityError: no regular file, too large, no JSON, of another form, or changed since it was sealed.
    """
    content, sealed = _parsed(path)
    if ("format" in content or "sha256" in content) and not sealed:
        raise _unreadable(path, "was altered: it is not what was sealed at the commit")
    return _of_form(path, Manifest, content), content


def read_source_manifest(path: Path) -> SourceManifest:
    """Read and check the manifest of a copy of a source, which is sealed without exception.

    Raises:
        IntegrityError: see `read_manifest`.
    """
    content, sealed = _parsed(path)
    if not sealed:
        raise _unreadable(path, "was altered: it is not what was sealed when it was written")
    return _of_form(path, SourceManifest, content)


def _parsed(path: Path) -> tuple[JsonObject, bool]:
    """Read a JSON object; and tell whether it is sealed."""
    raw = _read(path)
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"cannot be read: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise _unreadable(path, "is no JSON object")
    return cast("JsonObject", value), _is_sealed(raw)


def _of_form(path: Path, form: type[_Form], content: JsonObject) -> _Form:
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        raise _unreadable(path, f"is not of the form of a manifest: {where}: {first['msg'][:200]}") from error


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK a FIFO waits for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "rb") as stream:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise _unreadable(path, "is no regular file")
            if state.st_size > _LARGEST:
                raise _unreadable(path, f"has {state.st_size} bytes: more than any manifest")
            return stream.read(_LARGEST + 1)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from error


def _is_sealed(raw: bytes) -> bool:
    found = _SEAL.match(raw)
    return found is not None and hashlib.sha256(raw[:-_SEAL_LENGTH]).hexdigest() == found["seal"].decode()


def _unreadable(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what}",
        expected="the JSON manifest written at the commit",
        hint="delete the folder and run the command again: it makes the artifact anew",
    )


def write_manifest(path: Path, content: JsonObject) -> None:
    """Seal `content` and write it, whole or not at all.

    Raises:
        PlrError: a number in it is not finite.
    """
    for where, number in _not_finite(content, ""):
        raise PlrError(
            f"{where} is {number}: an artifact with such a number is not committed",
            expected="finite numbers in everything that is recorded",
            hint="the run diverged, or what it measured is damaged: look at its settings and at what it was made of",
        )
    text = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        body = text.removesuffix("\n}").encode()
    except UnicodeEncodeError:  # half a surrogate pair: a path that is no UTF-8
        text = json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False)
        body = text.removesuffix("\n}").encode()
    write_atomic(path, f'{body.decode()},\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}')


def _not_finite(value: object, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, dict):
        for key, part in cast("dict[str, object]", value).items():
            yield from _not_finite(part, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(cast("list[object]", value)):
            yield from _not_finite(part, f"{where}[{i}]")
