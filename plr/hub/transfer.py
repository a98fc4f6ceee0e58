"""Download one file from the hub into its cache, in the layout that the hub library documents.

How it works:

1. The bytes go to `plr/parts/<etag>` of the repository; `etag` is the sha256 of a large file, the git sha1 of a small one. A
   part that an earlier run left, killed or cut off, is gone on with from the byte where it ends.
2. Only when all of it is there and is what the listing promises does it become `blobs/<etag>`, by a rename, and the snapshot gets
   a link to it. So no other program ever finds half a file in the cache, or other bytes.
3. Two processes that want files of one repository take turns; the second finds them done.

Why not `hf_hub_download` (huggingface_hub 2.4): it deletes what came of a file when it fails, and leaves it unused after a kill, so
a large file starts anew; it puts bytes into the cache before anyone can compare them; it refuses files over 50 GB without hf_xet,
and hf_xet, which no argument turns off, has a client of its own that tries for minutes when its server does not answer.

What it gives up: the speed of hf_xet for large models. `hf download` uses it, and what that fetched is found here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from plr.errors import DiskFullError
from plr.hub.names import Kind, repo_folder

__all__ = ["Listed", "matches", "transfer"]

LOG = logging.getLogger(__name__)
CHUNK = 1 << 20
SHOW_PROGRESS_OVER = 16 << 20
"""Files this large (bytes) have their progress shown."""
LOG_WAITS_OVER = 2.0
"""Waiting this long (seconds) for another process is logged."""


class Listed(NamedTuple):
    """A file as the hub lists it."""

    size: int
    oid: str
    """sha1 of the git blob: of the bytes themselves, unless they lie in large file storage."""
    sha256: str | None = None
    """Checksum of a large file."""


def matches(file: Path, listed: Listed) -> str | None:
    """Return the sha256 of `file` if its bytes are those that are listed."""
    size = file.stat().st_size
    if size != listed.size:
        return None
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            if listed.sha256 is None:
                blob.update(chunk)
    right = sha256.hexdigest() == listed.sha256 if listed.sha256 else blob.hexdigest() == listed.oid
    return sha256.hexdigest() if right else None


def transfer(kind: Kind, name: str, sha: str, path: str, listed: Listed) -> str | None:
    """Have `path` in the snapshot of commit `sha`; its sha256, or None if something was sent that is not the file.

    Raises:
        DiskFullError: the disk has not as much room as the file takes.
        Exception: those of the hub library, and `plr.hub.patience.RequestFailed`; what came so far is kept.
    """
    folder, etag = repo_folder(kind, name), listed.sha256 or listed.oid
    part, blob = folder / "plr" / "parts" / etag, folder / "blobs" / etag
    part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "plr" / "lock", name):
        sha256 = matches(blob, listed) if blob.is_file() else None
        if sha256 is None:
            _fill(part, kind, name, sha, path, listed)
            sha256 = matches(part, listed)
            if sha256 is None:
                if part.stat().st_size >= listed.size:
                    part.unlink()
                return None
            blob.parent.mkdir(parents=True, exist_ok=True)
            part.replace(blob)
        _link(folder / "snapshots" / sha / path, blob)
    return sha256


@contextmanager
def _locked(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock on the files of `name`, alone. It is the operating system's: it ends with the process that has it."""
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=LOG_WAITS_OVER)
    except Timeout:
        LOG.warning("another process fetches files of %s; waiting until it has them", name)
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


def _fill(part: Path, kind: Kind, name: str, sha: str, path: str, listed: Listed) -> None:
    """Write to `part` what it lacks."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import FileMetadataError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

    have = part.stat().st_size if part.is_file() else 0
    if have > listed.size:
        part.unlink()
        have = 0
    if have == listed.size and part.is_file():
        return
    free = shutil.disk_usage(part.parent).free
    if listed.size - have > free:
        raise DiskFullError(
            f"{path} of {name} from the hub takes {listed.size - have:,} bytes more, and {part.parent} has {free:,} left",
            hint="make room there (hf cache ls), or point HF_HOME to a larger disk; what is whole is kept",
        )
    headers: dict[str, Any] = build_hf_headers(library_name="plr")
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hf_hub_url(name, path, repo_type=kind, revision=sha)
    with get_session().stream("GET", url, headers=headers) as response:
        goes_on = response.status_code == 206
        if response.status_code != 416:  # it has no byte behind the part, so the part is not of it
            hf_raise_for_status(response)
            if not any("X-Repo-Commit" in one.headers for one in (*response.history, response)):
                raise FileMetadataError(f"no X-Repo-Commit from {url}")
        bar = tqdm(desc=path, total=listed.size, initial=have if goes_on else 0, unit="B", unit_scale=True,
                   disable=True if listed.size < SHOW_PROGRESS_OVER else None)  # fmt: skip
        with bar, part.open("ab" if goes_on else "wb") as stream:
            for chunk in response.iter_raw() if response.status_code != 416 else ():
                stream.write(chunk)
                bar.update(len(chunk))
                if stream.tell() > listed.size:
                    break  # more than was promised: the comparison refuses it
            stream.flush()
            os.fsync(stream.fileno())


def _link(file: Path, blob: Path) -> None:
    """Make `file` a relative link to `blob`, or its copy where there are no links."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(os.path.relpath(blob, file.parent))
    except OSError:
        shutil.copyfile(blob, new)
    new.replace(file)
