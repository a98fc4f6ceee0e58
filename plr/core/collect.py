"""Leftovers of killed runs: which there are, and how they are removed.

A leftover is a folder, by its own name and nothing else: `.partial-<hash>`, `.broken-<hash>-<time>` and `.removed-<hash>-<time>`
beside the artifacts, `<hash>` in `.work`; the copies of sources in `.sources` leave the same. Links are not followed, other devices
not entered, and the lock of a step is held while its leftover goes. Artifacts go by the same rules (`plr.core.removal`).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from plr.core.artifact import Artifact
from plr.core.files import flush
from plr.core.locks import hold, lock_file
from plr.core.sources import FOLDER, SourceCopy, copies, spare
from plr.core.specs import KINDS
from plr.errors import IntegrityError

__all__ = ["Leftovers", "folder_bytes", "is_held", "take_away"]

_HASH = "[0-9a-f]{12}"
_BESIDE = re.compile(rf"\.partial-(?P<hash>{_HASH})|\.(?:broken|removed)-(?P<hash2>{_HASH})-[0-9TZ.]+")
_WORK = re.compile(rf"(?P<hash>{_HASH})")


@dataclass
class Leftovers:
    """Folders of a store that may go, and in words whatever is left alone."""

    home: Path
    folders: list[Path] = field(default_factory=list[Path])
    bytes: int = 0
    alone: list[str] = field(default_factory=list[str])

    @classmethod
    def find(cls, home: Path) -> Leftovers:
        """Look for leftovers that no running process holds."""
        found = cls(home)
        try:
            device = home.stat().st_dev
        except OSError:
            return found
        for folder, names in (*((home / kind, _BESIDE) for kind in (*KINDS, FOLDER)), (home / ".work", _WORK)):
            found._look(folder, names, device)
        return found

    def look_at_copies(self, artifacts: Iterable[Artifact], *, everything: bool = False) -> None:
        """Add the copies of sources that none of `artifacts` needs; with `everything` all copies."""
        try:
            spared = copies(self.home) if everything else spare(self.home, artifacts)
            device = self.home.stat().st_dev
        except (IntegrityError, OSError) as error:
            self.alone.append(f"{self.home / FOLDER}: which copies are needed cannot be told: {error}")
            return
        for copy in spared:
            if (size := self._size(copy.path, device)) is not None and not self._held(copy.path):
                self.folders.append(copy.path)
                self.bytes += size

    def _look(self, folder: Path, names: re.Pattern[str], device: int) -> None:
        if folder.is_symlink():
            if names is _WORK:
                self.alone.append(f"{folder} is a link: what lies behind it is left alone")
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.alone.append(f"{folder} cannot be read: {error.strerror}")
            return
        for entry in entries:
            path = Path(entry.path)
            name = names.fullmatch(entry.name)
            if name is None:
                if names is _WORK or entry.name.startswith((".partial-", ".broken-", ".removed-")):
                    self.alone.append(f"{path} is not named as a leftover")
            elif (size := self._size(path, device)) is not None and not self._held(path):
                self.folders.append(path)
                self.bytes += size

    def _size(self, path: Path, device: int) -> int | None:
        """Add up the bytes of a folder; None, with the reason noted, if it is none, or not all of it is this store's."""
        found = folder_bytes(path, device)
        if isinstance(found, int):
            return found
        self.alone.append(found)
        return None

    def _held(self, path: Path) -> bool:
        try:
            return is_held(self.home, _hash_of(path))
        except OSError as error:
            self.alone.append(f"{path}: its lock cannot be taken: {error.strerror}")
            return True

    def remove(self) -> list[Path]:
        """Remove the folders, each under the lock of its step; return those that are gone, and note the others."""
        gone: list[Path] = []
        device = self.home.stat().st_dev if self.folders else 0
        for path in self.folders:
            is_copy = path.parent.name == FOLDER and not path.name.startswith(".")
            if reason := (_take_copy(path, device) if is_copy else take_away(self.home, path, _hash_of(path), device)):
                self.alone.append(reason)
            else:
                gone.append(path)
        return gone


def folder_bytes(path: Path, device: int) -> int | str:
    """Add up the bytes of a folder; in words why it is none, or not all of it is on `device`, where that is so."""
    total = 0
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return f"{path} is no folder"
        for folder, _, files in os.walk(path):
            if os.lstat(folder).st_dev != device:
                return f"{folder} is on another device"
            total += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return total


def is_held(home: Path, short: str) -> bool:
    """Tell whether a process holds the lock of the step whose fingerprint begins with `short`.

    Raises:
        OSError: the lock cannot be taken for another reason.
    """
    if not lock_file(home, short).exists():
        return False
    try:
        with hold(home, short, blocking=False):
            return False
    except Timeout:
        return True


def take_away(home: Path, path: Path, short: str, device: int, *, aside: Path | None = None) -> str:
    """Remove a folder under the lock of its step, renamed to `aside` first; in words why not, where it stays.

    What is renamed is no artifact any more, so a kill in the middle leaves a leftover and no half of one.
    """
    try:
        with hold(home, short, blocking=False):
            if isinstance(reason := folder_bytes(path, device), str):
                return reason
            if aside is not None:
                path = path.rename(aside)
                flush(path.parent)
            shutil.rmtree(path)
    except Timeout:
        return f"{path} is in use now"
    except OSError as error:
        return f"{path} cannot be removed: {error.strerror}"
    return ""


def _take_copy(path: Path, device: int) -> str:
    """Remove a copy of a source that nobody makes or reads now; in words why not, where it stays."""
    try:
        if isinstance(reason := folder_bytes(path, device), str):
            return reason
        return "" if SourceCopy(path).remove() else f"{path} is in use now"
    except OSError as error:
        return f"{path} cannot be removed: {error.strerror}"


def _hash_of(path: Path) -> str:
    found = _BESIDE.fullmatch(path.name) or _WORK.fullmatch(path.name)
    assert found is not None
    return next(group for group in found.groups() if group)
