"""The lock of a step: of the operating system, gone with its process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from plr.core.files import write_mode

__all__ = ["hold", "lock_file"]


def lock_file(home: Path, short: str) -> Path:
    return home / ".locks" / f"{short}.lock"


@contextmanager
def hold(home: Path, short: str, *, blocking: bool = True) -> Generator[None]:
    """Hold the lock of the step whose fingerprint begins with `short`; whoever writes to the store holds it.

    Raises:
        filelock.Timeout: another process has it, and `blocking` is false.
        OSError: the store cannot be written.
    """
    file = lock_file(home, short)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever may write to the folder may lock: the library's own mode shuts a group out.
    with FileLock(file, blocking=blocking, mode=write_mode(file.parent)):
        yield
