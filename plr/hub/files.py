"""Files of a repository at a commit, each with the bytes that the commit says.

How it works:

1. The listing of the commit is asked for once. It gives the sha256 of a large file and the git sha1 of a small one.
2. Every wanted file that is in the cache is compared with it, whoever put it there; what is missing or damaged is fetched
   (`plr.hub.transfer`). Other bytes than those listed are fetched anew, and at the third time refused.
3. What has been compared is written down (`plr/<commit>.json` beside the snapshot) with size and time of change; until these
   change a file is not read again to be compared.
4. Once all wanted files are there, nothing is asked any more: a second run makes no network call, whether it is told to be offline
   or not. Without the listing (a cache that an older program filled) nobody can say whether all shards are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from plr.errors import HubError, HubNotFound, HubUnreachable, IntegrityError
from plr.hub.client import patient
from plr.hub.names import Kind, name_snapshot, repo_folder, write_note
from plr.hub.problems import explained
from plr.hub.transfer import Listed, matches, transfer

__all__ = ["Fetched", "Listed", "fetch", "is_listed", "listing"]

TRIES = 3
"""Downloads of a file whose bytes are not those that are listed."""


class Fetched(NamedTuple):
    folder: Path
    """The snapshot in the hub cache."""
    files: dict[str, str]
    """Wanted file -> sha256 of its bytes."""


@dataclass
class _Record:
    """A commit's record: its files, and those that were compared."""

    path: Path
    listed: dict[str, Listed] = field(default_factory=dict)
    compared: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """File -> sha256, size, time of change (ns) when it was compared."""

    @classmethod
    def of(cls, kind: Kind, name: str, sha: str) -> _Record:
        folder = repo_folder(kind, name)
        record = cls(folder / "plr" / f"{sha}.json")
        try:
            value = json.loads(record.path.read_text(encoding="utf-8"))
            record.listed = {path: Listed(*entry) for path, entry in value["listed"].items()}
            record.compared = {path: tuple(entry) for path, entry in value["compared"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            # None yet, or one that cannot be read: it is made anew. What `hf download` listed will do too.
            record.listed, record.compared = _listed_by_library(folder / "trees" / f"{sha}.json"), {}
        return record

    def save(self) -> None:
        write_note(self.path, json.dumps({"listed": self.listed, "compared": self.compared}))


def _listed_by_library(path: Path) -> dict[str, Listed]:
    """Read the listing that `hf download` leaves in the cache (huggingface_hub 2.4 and later)."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: Listed(it["size"], it["blob_id"], it.get("lfs_sha256")) for name, it in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def listing(kind: Kind, name: str, sha: str, *, offline: bool, advice: str) -> Mapping[str, Listed]:
    """List every file of the commit.

    Raises:
        HubError: the listing is not in the cache and cannot be asked for.
    """
    return _listed(_Record.of(kind, name, sha), kind, name, sha, offline, advice)


def is_listed(kind: Kind, name: str, sha: str) -> bool:
    """Tell whether the listing of the commit is in the cache."""
    return bool(_Record.of(kind, name, sha).listed)


def _listed(record: _Record, kind: Kind, name: str, sha: str, offline: bool, advice: str) -> dict[str, Listed]:
    if record.listed:
        return _checked(record.listed, name)
    if offline:
        _raise_offline(kind, name, sha, advice)
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with explained(kind, name, sha, advice=advice, parsing=True), patient():
        entries = list(HfApi().list_repo_tree(name, recursive=True, revision=sha, repo_type=kind))
    for entry in entries:
        if isinstance(entry, RepoFile):
            lfs = entry.lfs.sha256 if entry.lfs is not None else None
            record.listed[entry.path] = Listed(entry.size, entry.blob_id, lfs)
    return _checked(record.listed, name)


def _raise_offline(kind: Kind, name: str, sha: str, advice: str) -> NoReturn:
    folder = repo_folder(kind, name)
    if not (folder / "snapshots" / sha).is_dir():
        raise HubUnreachable(f"plr is offline, and {name} at {sha[:12]} from the hub is not in the cache", hint=advice)
    tree = folder / "trees" / f"{sha}.json"  # the hub library lets its owner alone read it
    raise HubUnreachable(
        f"plr is offline, and the cache has files of {name} at {sha[:12]}, but no list of all files that can be read",
        hint=f"let all read {tree}; or {advice}" if tree.exists() else advice,
    )


def _checked(listed: dict[str, Listed], name: str) -> dict[str, Listed]:
    """Check that every name of a listing is inside of the repository and every checksum a number: they become names of files."""
    if not listed:
        raise HubNotFound(f"{name} on the hub has no files", hint="see whether the name and the revision are right")
    for path, entry in listed.items():
        inside = not PurePosixPath(path).is_absolute() and ".." not in path.replace("\\", "/").split("/")
        if not inside or not all(
            re.fullmatch("[0-9a-f]{40,64}", one) for one in (entry.oid, entry.sha256 or entry.oid)
        ):
            raise HubError(f"{name} on the hub lists what cannot be a file of it: {path!r}", hint="do not use it")
    return listed


def fetch(
    kind: Kind,
    name: str,
    sha: str,
    wanted: Callable[[Mapping[str, Listed]], Iterable[str]],
    *,
    offline: bool,
    advice: str,
) -> Fetched:
    """Fetch the wanted files of a commit, whole and compared; the network is asked only for what is not there.

    Raises:
        HubError: a file that is not there cannot be fetched, or plr is offline; ends with `advice`.
        IntegrityError: the hub sends other bytes than it promises.
        DiskFullError: the disk is full.
    """
    record = _Record.of(kind, name, sha)
    paths = list(wanted(_listed(record, kind, name, sha, offline, advice)))
    folder = repo_folder(kind, name) / "snapshots" / sha
    before = dict(record.compared)
    missing = [path for path in paths if not _is_as_compared(record, folder, path)]
    try:
        for path in missing:
            _get(record, folder, kind, name, sha, path, offline, advice)
    finally:
        if record.compared != before or (paths and not record.path.is_file() and folder.is_dir()):
            with explained(kind, name, sha, advice=advice):
                record.save()
    if paths:
        with explained(kind, name, sha, advice=advice):
            name_snapshot(kind, name, sha)
    return Fetched(folder, {path: record.compared[path][0] for path in paths})


def _is_as_compared(record: _Record, folder: Path, path: str) -> bool:
    known = record.compared.get(path)
    try:
        stat = (folder / path).stat()
    except OSError:
        return False
    return known is not None and known[1:] == (stat.st_size, stat.st_mtime_ns)


def _get(record: _Record, folder: Path, kind: Kind, name: str, sha: str, path: str, offline: bool, advice: str) -> None:
    """Have one file in the snapshot with the bytes that are listed, and note it."""
    file, listed = folder / path, record.listed[path]
    sha256 = matches(file, listed) if file.is_file() else None
    if sha256 is None and offline:
        what = "is damaged in the cache" if file.is_file() else "is not in the cache"
        raise HubUnreachable(f"plr is offline, and {path} of {name} from the hub {what}", hint=advice)
    for _ in range(TRIES):
        if sha256 is None:
            with explained(kind, name, sha, advice=advice), patient():
                sha256 = transfer(kind, name, sha, path, listed)
    if sha256 is None:
        promised = f"sha256 {listed.sha256[:12]}" if listed.sha256 else f"git sha1 {listed.oid[:12]}"
        raise IntegrityError(
            f"the hub does not send {path} of {name} as its listing promises ({listed.size} bytes, {promised}), {TRIES} times; "
            "what it sent is not used",
            hint=f"something between here and the hub may change them (a proxy, a mirror): try another network, or {advice}",
        )
    stat = file.stat()
    record.compared[path] = (sha256, stat.st_size, stat.st_mtime_ns)
