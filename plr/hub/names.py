"""Commits that names stand for, asked of the hub, with answers a user can act on."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from plr.core.files import not_writable, write_atomic
from plr.errors import HubError
from plr.hub.client import patient
from plr.hub.problems import explained

__all__ = [
    "Kind",
    "cached_sha",
    "commit_sha",
    "is_offline",
    "is_sha",
    "name_snapshot",
    "repo_folder",
    "write_note",
]

Kind = Literal["model", "dataset"]
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_offline(asked: bool) -> bool:
    """Tell whether no network call may be made: by `--offline`, or by a variable of the hub libraries."""
    return asked or any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def is_sha(revision: str | None) -> bool:
    """Tell whether `revision` is a whole commit sha, which no one can move.

    >>> is_sha("main"), is_sha("0123456789abcdef0123456789abcdef01234567")
    (False, True)
    """
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def repo_folder(kind: Kind, name: str) -> Path:
    """Return the folder in which the hub library keeps the files of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def cached_sha(kind: Kind, name: str, revision: str | None = None) -> str | None:
    """Find the commit of `name` in the local hub cache: what `revision` (or main) points at there, or the only one there is."""
    folder = repo_folder(kind, name)
    sha = _ref(folder, revision or "main") or revision
    if sha is not None:
        return sha if (folder / "snapshots" / sha).is_dir() else None
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return snapshots[0] if len(snapshots) == 1 else None


def commit_sha(kind: Kind, name: str, revision: str | None = None, *, advice: str) -> str:
    """Return the commit that `name` (at `revision`, or at the head of its main branch) stands for.

    Raises:
        HubError: the hub does not know the repository or the revision, asks for a licence, or cannot be reached; the message
            ends with `advice`.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(kind, name, revision, advice=advice, parsing=True), patient():
        ask = api.model_info if kind == "model" else api.dataset_info
        sha = ask(name, revision=revision).sha
    if sha is None or not is_sha(sha):
        raise HubError(f"the hub gave no commit sha for {name}, but {sha!r}", hint=advice)
    folder, asked = repo_folder(kind, name), revision or "main"
    if not is_sha(revision) and ".." not in asked and _ref(folder, asked) != sha:
        with explained(kind, name, revision, advice=advice):
            write_note(_asked(folder) / quote(asked, safe=""), sha)
    return sha


def name_snapshot(kind: Kind, name: str, sha: str) -> None:
    """Let the branches and tags that were asked for and stand for `sha` be found offline, now that its files are there.

    What was asked for is kept in files: one process may ask, and another fetch.
    """
    folder = repo_folder(kind, name)
    for asked in _asked(folder).glob("[!.]*"):
        with suppress(FileNotFoundError):  # another process has named it just now
            if asked.read_text(encoding="utf-8") == sha:
                write_note(folder / "refs" / unquote(asked.name), sha)
                with suppress(PermissionError):
                    asked.unlink()


def _ref(folder: Path, revision: str) -> str | None:
    """Return the commit that a branch or tag points at in the cache."""
    ref = folder / "refs" / revision
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def _asked(folder: Path) -> Path:
    return folder / "plr" / "asked"


def write_note(file: Path, text: str) -> None:
    """Write a small file that saves work the next time; in a cache for reading alone it is left out.

    Raises:
        OSError: the disk is full.
    """
    try:
        write_atomic(file, text)
    except OSError as error:
        if not not_writable(error):
            raise
