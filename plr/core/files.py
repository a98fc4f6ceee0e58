"""Write files whole or not at all, and tell a full disk from other errors: the same way everywhere."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path

__all__ = ["disk_full", "flush", "flush_tree", "not_writable", "system_error", "write_atomic", "write_mode"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (
    *(f"(os error {code})" for code in _FULL),
    *(os.strerror(code) for code in _FULL),
    "Not enough disk space",
)
"""Words of libraries without an error number: safetensors and tokenizers (Rust), C++ streams, and `datasets` before it writes."""


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one, whenever the process or the machine stops.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the operating system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Have the operating system write everything in `folder`, and its name, to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        flush(path)
    flush(folder)
    flush(folder.parent)


def write_mode(folder: Path) -> int:
    """Return the mode that the umask gave a file in `folder`, told from the folder's own: there is no way to ask for a umask."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o666


def disk_full(error: BaseException) -> bool:
    """Tell whether a full disk, or a full quota, is behind `error`.

    The one place where words are read for it, as not every library gives the error number.

    >>> disk_full(OSError(errno.ENOSPC, "No space left on device")), disk_full(OSError(errno.EACCES, "Permission denied"))
    (True, False)
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL or (number is None and any(words in str(cause) for words in _FULL_WORDS)):
            return True
        cause = cause.__cause__
    return False


def system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error behind `error`: itself, or that of a library in Rust or C++, its number read from words.

    >>> system_error(RuntimeError("I/O error: Input/output error (os error 5)"))
    OSError(5, 'Input/output error')
    >>> system_error(RuntimeError("unable to open file <x> in read-only mode: Input/output error (5)"))
    OSError(5, 'Input/output error')
    """
    if isinstance(error, OSError):
        return error
    for number in map(int, re.findall(r"\((?:os error )?(\d{1,3})\)", str(error))):
        if f"{os.strerror(number)} (" in str(error):
            return OSError(number, os.strerror(number))
    return None


def not_writable(error: OSError) -> bool:
    """Tell whether a file could not be written for lack of permission, or on a filesystem for reading alone."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
