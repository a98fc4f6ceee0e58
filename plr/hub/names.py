"""Asking the hub which commit a name stands for, with answers a user can act on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from plr.errors import UsageError
from plr.hub.patience import patient
from plr.hub.problems import explained

__all__ = ["Kind", "cached_sha", "commit_sha", "is_offline", "is_sha", "name_snapshot", "repo_folder", "writable"]

Kind = Literal["model", "dataset"]
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_ASKED: dict[tuple[Kind, str, str], str] = {}
"""Commits that the hub gave in this process -> the branch or tag that was asked for."""


def is_offline(asked: bool) -> bool:
    """Whether no network call may be made: by ``--offline``, or by a variable of the hub libraries."""
    return asked or any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def is_sha(revision: str | None) -> bool:
    """Whether ``revision`` is a whole commit sha, which no one can move.

    >>> is_sha("main"), is_sha("0123456789abcdef0123456789abcdef01234567")
    (False, True)
    """
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def repo_folder(kind: Kind, name: str) -> Path:
    """Where the hub library keeps the files of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def cached_sha(kind: Kind, name: str, revision: str | None = None) -> str | None:
    """The commit of ``name`` in the local hub cache: what ``revision`` (or main) points at there, or the only one there is."""
    folder = repo_folder(kind, name)
    ref = folder / "refs" / (revision or "main")
    sha = ref.read_text().strip() if ref.is_file() else revision
    if sha is not None:
        return sha if (folder / "snapshots" / sha).is_dir() else None
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return snapshots[0] if len(snapshots) == 1 else None


def commit_sha(kind: Kind, name: str, revision: str | None = None, *, advice: str) -> str:
    """The commit that ``name`` (at ``revision``, or at the head of its main branch) stands for.

    Raises:
        UsageError: the hub does not know the repository or the revision, asks for a licence, or cannot be reached; the message
            ends with ``advice``.
    """
    from huggingface_hub import HfApi

    with explained(kind, name, revision, advice=advice), patient():
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        sha = ask(name, revision=revision).sha
    if sha is None or not is_sha(sha):
        raise UsageError(f"the hub gave no commit sha for {name}, but {sha!r}", hint=advice)
    _ASKED[kind, name, sha] = revision or "main"
    return sha


def name_snapshot(kind: Kind, name: str, sha: str) -> None:
    """Remember which branch or tag a commit was asked for by, now that its files are there: offline the name finds it again."""
    revision = _ASKED.get((kind, name, sha))
    if revision is None or is_sha(revision):
        return
    ref = repo_folder(kind, name) / "refs" / revision
    if ".." in revision or (ref.is_file() and ref.read_text() == sha):
        return
    part = ref.with_name(f".{ref.name}.{os.getpid()}")
    with writable():
        ref.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(sha)
        part.replace(ref)


@contextmanager
def writable() -> Iterator[None]:
    """What is written here saves work the next time: in a cache that is for reading alone it is left out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
