"""Copies of sources: what is costly to read is written once in a form that is not, and found by content.

How it works.

1. A copy is named by its key: the hash of the source, the form it has here, and the versions of whatever wrote it. Another version
   has another name, so an old copy is never taken for a new one.
2. It is made as an artifact is: under the lock of its name, in `.sources/.partial-<12 hex>`, every file flushed and hashed, the
   sealed manifest last, then renamed. Two processes make it once.
3. It is checked as an artifact is, all hashes once a process. One that is broken is moved aside, which is said, and made again.
4. Whoever reads it holds a lock of its manifest that readers share, so `plr gc` takes nothing away from under a reader.

It is no artifact: nothing refers to it, and what is lost with it is time.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from filelock import Timeout

from plr.core.artifact import SHORT, Artifact, SealedFolder, commit, move_aside, record_files
from plr.core.files import flush
from plr.core.fingerprint import JsonObject, fingerprint
from plr.core.locks import hold
from plr.core.manifest import MANIFEST, FileRecord, SourceManifest, read_source_manifest
from plr.core.provenance import provenance
from plr.errors import IntegrityError

__all__ = ["FOLDER", "SourceCopy", "copies", "copy_of", "make_copy", "source_key", "spare"]

FOLDER = ".sources"
"""A name that begins with a dot: it holds no artifacts."""
FORMAT = 1
"""Raised when a copy comes to be written otherwise."""
_NAME = re.compile(rf"[0-9a-f]{{{SHORT}}}")


@dataclass(frozen=True)
class SourceCopy(SealedFolder):
    """A committed copy."""

    @cached_property
    def record(self) -> SourceManifest:
        """Its manifest, checked.

        Raises:
            IntegrityError: it cannot be read, was altered, or is that of another copy.
        """
        record = read_source_manifest(self.path / MANIFEST)
        self._agree("key", fingerprint(record.key)[:SHORT], "the folder's hash", self.path.name)
        return record

    @property
    def files(self) -> dict[str, FileRecord]:
        return self.record.files

    @property
    def is_current(self) -> bool:
        """Tell whether what is installed now would look for it."""
        key = self.record.key
        return key == source_key(str(key.get("source")), str(key.get("form")), key.get("versions") or {})

    @property
    def bytes(self) -> int:
        """Sum of the sizes of its files."""
        return sum(file.size for file in self.files.values())

    @contextmanager
    def reading(self) -> Generator[Path]:
        """Check all files, each hashed once a process, and keep the copy from being removed while it is read.

        Raises:
            IntegrityError: see `SealedFolder.check`.
            FileNotFoundError: it is gone.
        """
        with (self.path / MANIFEST).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            yield self.use()

    def remove(self) -> bool:
        """Remove it; false if someone makes or reads it now.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            with hold(self.path.parents[1], self.path.name, blocking=False), ExitStack() as held:
                if (self.path / MANIFEST).is_file():
                    stream = held.enter_context((self.path / MANIFEST).open("rb"))
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gone = self.path.with_name(f".partial-{self.path.name}")
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(self.path, gone)  # so that a kill here leaves no half of one
                shutil.rmtree(gone)
        except (Timeout, BlockingIOError):
            return False
        return True


def source_key(revision: str, form: str, readers: Iterable[str]) -> JsonObject:
    """Name a copy: the hash of its source, its form, and the packages that read the source, which get their versions."""
    return {"source": revision, "form": form, "format": FORMAT, "versions": {name: _version(name) for name in readers}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def copy_of(home: Path, key: JsonObject) -> SourceCopy | None:
    """Find the copy of this key in a store; None if it is not there."""
    copy = SourceCopy(home / FOLDER / fingerprint(key)[:SHORT])
    return copy if os.path.lexists(copy.path) else None


def make_copy(home: Path, key: JsonObject, label: str, build: Callable[[Path], object]) -> SourceCopy:
    """Find the copy of this key, or have `build` write it into the empty folder it is given.

    One that is there and broken is moved aside, and said.

    Raises:
        OSError: the store cannot be written, or its disk is full; nothing is left of what was written.
    """
    short = fingerprint(key)[:SHORT]
    with hold(home, short):
        copy = copy_of(home, key)
        if copy is not None:
            try:
                copy.use()
                return copy
            except IntegrityError as error:
                aside = move_aside(copy.path, short)
                print(f"{error.message}: it was moved aside to {aside.name}, and is made again", file=sys.stderr)
        folder = home / FOLDER
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            flush(home)
        partial = folder / f".partial-{short}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            record = {"label": label, "key": key, "files": record_files(partial), "provenance": provenance()}
            commit(partial, folder / short, record)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return SourceCopy(folder / short)


def copies(home: Path) -> list[SourceCopy]:
    """List the copies of a store, whatever their state."""
    if (home / FOLDER).is_symlink():
        return []
    try:
        names = sorted(os.listdir(home / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [SourceCopy(home / FOLDER / name) for name in names if _NAME.fullmatch(name)]


def spare(home: Path, artifacts: Iterable[Artifact]) -> list[SourceCopy]:
    """List the copies that are broken, of other versions, or of sources that went into none of `artifacts`.

    Raises:
        IntegrityError: an artifact whose manifest cannot be read, so that its source is not known.
    """
    found = copies(home)
    needed = _revisions(artifacts) if found else set[str]()
    return [copy for copy in found if not _is_needed(copy, needed)]


def _is_needed(copy: SourceCopy, needed: set[str]) -> bool:
    try:
        return copy.is_current and copy.record.key["source"] in needed
    except IntegrityError:
        return False


def _revisions(artifacts: Iterable[Artifact]) -> set[str]:
    """List the sources, by hash, that went into these artifacts.

    Raises:
        IntegrityError: a manifest that cannot be read.
    """
    found: set[str] = set()
    ahead: list[object] = [artifact.record.step for artifact in artifacts]
    while ahead:
        value = ahead.pop()
        if isinstance(value, dict):
            inner = cast("JsonObject", value)
            if isinstance(revision := inner.get("revision"), str):
                found.add(revision)
            ahead += inner.values()
        elif isinstance(value, list):
            ahead += cast("list[object]", value)
    return found
