"""Leftovers of killed runs: which there are, and how they are removed.

A leftover is a folder, by its own name and nothing else: `.partial-<hash>` and `.broken-<hash>-<time>` beside the artifacts,
`<hash>` in `.work`; the copies of sources in `.sources` leave the same. Links are not followed, other devices not entered, and the
lock of a step is held while its leftover goes.
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
from plr.core.locks import hold, lock_file
from plr.core.sources import FOLDER, SourceCopy, copies, spare
from plr.core.specs import KINDS
from plr.errors import IntegrityError

__all__ = ["Leftovers"]

_HASH = "[0-9a-f]{12}"
_BESIDE = re.compile(rf"\.partial-(?P<hash>{_HASH})|\.broken-(?P<hash2>{_HASH})-[0-9TZ.]+")
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
                if names is _WORK or entry.name.startswith((".partial-", ".broken-")):
                    self.alone.append(f"{path} is not named as a leftover")
            elif (size := self._size(path, device)) is not None and not self._held(path):
                self.folders.append(path)
                self.bytes += size

    def _size(self, path: Path, device: int) -> int | None:
        """Add up the bytes of a folder; None, with the reason noted, if it is none, or not all of it is this store's."""
        total = 0
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                self.alone.append(f"{path} is no folder")
                return None
            for folder, _, files in os.walk(path):
                if os.lstat(folder).st_dev != device:
                    self.alone.append(f"{folder} is on another device")
                    return None
                total += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
        except OSError as error:
            self.alone.append(f"{path} cannot be read: {error.strerror}")
            return None
        return total

    def _held(self, path: Path) -> bool:
        if not lock_file(self.home, _hash_of(path)).exists():
            return False
        try:
            with hold(self.home, _hash_of(path), blocking=False):
                return False
        except Timeout:
            return True
        except OSError as error:
            self.alone.append(f"{path}: its lock cannot be taken: {error.strerror}")
            return True

    def remove(self) -> list[Path]:
        """Remove the folders, each under the lock of its step; return those that are gone, and note the others."""
        gone: list[Path] = []
        in_use: list[Path] = []
        device = self.home.stat().st_dev if self.folders else 0
        for path in self.folders:
            try:
                if path.parent.name == FOLDER and not path.name.startswith("."):
                    if self._size(path, device) is not None:
                        (gone if SourceCopy(path).remove() else in_use).append(path)
                    continue
                with hold(self.home, _hash_of(path), blocking=False):
                    if self._size(path, device) is not None:
                        shutil.rmtree(path)
                        gone.append(path)
            except Timeout:
                in_use.append(path)
            except OSError as error:
                self.alone.append(f"{path} cannot be removed: {error.strerror}")
        self.alone += [f"{path} is in use now" for path in in_use]
        return gone


def _hash_of(path: Path) -> str:
    found = _BESIDE.fullmatch(path.name) or _WORK.fullmatch(path.name)
    assert found is not None
    return next(group for group in found.groups() if group)
