"""A committed artifact: a folder that is what its manifest says, and says so whenever it is used."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from plr.core.files import flush, write_mode
from plr.core.fingerprint import JsonObject, file_sha256, known_sha256
from plr.core.manifest import MANIFEST, FileRecord, Manifest, read_manifest, write_manifest
from plr.core.specs import Evaluate, GivenAdapter, GivenBase, Quantize, Restore, Source, Train, step_from_json
from plr.errors import IntegrityError

__all__ = ["SHORT", "Artifact", "SealedFolder", "commit", "move_aside", "record_files"]

SHORT = 12
"""Digits of the fingerprint in a folder's name."""
_NOTES = (".md", ".html", ".svg", ".png", ".log")
"""Files that no loader reads: they may be laid beside those of an artifact, and so may hidden ones."""


@dataclass(frozen=True)
class SealedFolder(ABC):
    """A folder whose files are on record in its manifest, each with size and sha256."""

    path: Path

    @property
    @abstractmethod
    def files(self) -> Mapping[str, FileRecord]:
        """The record of each file.

        Raises:
            IntegrityError: the manifest cannot be read, or was altered.
        """

    def check(self, *, hashes: bool = True, anew: bool = True) -> None:
        """Compare the folder with its manifest: each file's presence and size, and the sha256 if `hashes`.

        A file without a record that a loader might read is refused too. With `anew` false a file is hashed once a process.

        Raises:
            IntegrityError: the first file that is missing, differs or is not on record, by name.
        """
        lying = self._lying()
        for name, recorded in self.files.items():
            self._check_file(name, recorded, lying.pop(name, None))
            if hashes:
                self._check_hash(name, recorded, file_sha256 if anew else known_sha256)
        for name in lying:
            if not name.startswith(".") and "/." not in name and not name.endswith(_NOTES):
                self._broken(f"{self.path / name} is not on record: a loader might read it", "take the file away")

    def use(self) -> Path:
        """Check all files, each hashed once a process, and return the folder to read them from.

        Raises:
            IntegrityError: see `check`.
        """
        self.check(anew=False)
        return self.path

    def _lying(self) -> dict[str, os.stat_result]:
        """Look at what lies in the folder, links not followed; the manifest is left out."""
        found: dict[str, os.stat_result] = {}
        folders = [""]
        try:
            while folders:
                lead = folders.pop()
                with os.scandir(self.path / lead) as entries:
                    for entry in entries:
                        name = lead + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif name != MANIFEST:
                            found[name] = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._broken(f"{error.filename} cannot be read: {error.strerror}")
        return found

    def _check_file(self, name: str, recorded: FileRecord, state: os.stat_result | None) -> None:
        file = self.path / name
        if state is None:
            self._broken(f"{file} is {'a folder' if file.is_dir() else 'missing'}")
        elif not stat.S_ISREG(state.st_mode):
            self._broken(f"{file} is {'a link' if stat.S_ISLNK(state.st_mode) else 'no regular file'}")
        elif state.st_size != recorded.size:
            self._broken(f"{file} has {state.st_size} bytes, {recorded.size} were written")

    def _check_hash(self, name: str, recorded: FileRecord, sha256: Callable[[Path], str]) -> None:
        file = self.path / name
        try:
            found = sha256(file)
        except OSError as error:
            self._broken(f"{file} cannot be read: {error.strerror}")
            return
        if found != recorded.sha256:
            self._broken(f"{file} was altered: its sha256 differs from the manifest")

    def _agree(self, what: str, ours: str, theirs: str, value: str) -> None:
        if ours != value:
            self._broken(f"{self.path / MANIFEST} has the {what} {ours[:80]!r}, and {theirs} is {value[:80]!r}")

    def _broken(self, message: str, way: str = "") -> None:
        raise IntegrityError(
            message,
            expected="the files as they were committed",
            hint=way or f"delete {self.path} and run the command again: it makes the artifact anew",
        )


def record_files(folder: Path) -> JsonObject:
    """Flush and hash every file of a folder; return what a manifest says of them."""
    files: JsonObject = {}
    mode = write_mode(folder)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            file.chmod(mode)  # some libraries write 0600 whatever the umask
            flush(file)
            files[file.relative_to(folder).as_posix()] = {"sha256": known_sha256(file), "size": file.stat().st_size}
    return files


def commit(partial: Path, final: Path, manifest: JsonObject) -> None:
    """Write the manifest of a folder, whose files are flushed, and give it its final name beside it.

    Raises:
        PlrError: a number in `manifest` is not finite.
    """
    write_manifest(partial / MANIFEST, manifest)
    for folder in partial.rglob("*"):
        if folder.is_dir():
            flush(folder)
    flush(partial)
    os.rename(partial, final)
    flush(final.parent)


def move_aside(path: Path, short: str) -> Path:
    """Rename what lies in the place of a folder whose hash begins with `short`, so that it is kept and no longer in the way."""
    aside = path.parent / f".broken-{short}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}"
    os.rename(path, aside)
    return aside


@dataclass(frozen=True)
class Artifact(SealedFolder):
    """A committed folder with its manifest.

    `placed`: it lies in a store, so kind and hash must be those of its folder. A copy elsewhere may have any name.
    """

    placed: bool = True

    @cached_property
    def _content(self) -> tuple[Manifest, JsonObject]:
        record, content = read_manifest(self.path / MANIFEST)
        if self.placed:
            self._agree("kind", record.kind, "the folder of its kind", self.path.parent.name)
            self._agree(
                "fingerprint", record.fingerprint[:SHORT], "the folder's hash", self.path.name.rpartition("-")[2]
            )
        return record, content

    @property
    def record(self) -> Manifest:
        """Its manifest, checked.

        Raises:
            IntegrityError: it cannot be read, was altered, or is that of another folder.
        """
        return self._content[0]

    @property
    def files(self) -> Mapping[str, FileRecord]:
        return self.record.files

    @property
    def manifest(self) -> JsonObject:
        """Its manifest as a JSON object."""
        return self._content[1]

    @cached_property
    def step(self) -> Source | Quantize | GivenBase | Train | GivenAdapter | Restore | Evaluate:
        """The step that made it.

        Raises:
            IntegrityError: the manifest was written by another version of plr or altered, or belongs to another artifact.
        """
        try:
            step = step_from_json(self.record.step)
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(
                f"{self.path / MANIFEST} describes no step this version of plr knows",
                hint="it was made by another version of plr, or altered; make it again",
            ) from error
        self._agree("kind", self.record.kind, "the kind of its step", step.kind)
        if self.record.fingerprint not in step.fingerprints:
            self._agree("fingerprint", self.record.fingerprint, "that of its step", step.fingerprint)
        return step

    @property
    def kind(self) -> str:
        return self.record.kind

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    @property
    def metrics(self) -> JsonObject:
        return self.manifest["metrics"]

    def check(self, *, hashes: bool = True, anew: bool = True) -> None:
        """Compare the folder with its manifest: the step, each file's presence and size, and the sha256 if `hashes`.

        A file without a record that a loader might read is refused too. With `anew` false a file is hashed once a process.

        Raises:
            IntegrityError: the first file that is missing, differs or is not on record, by name.
        """
        _ = self.step
        super().check(hashes=hashes, anew=anew)
