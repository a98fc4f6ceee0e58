"""Tell that memory ran out from other errors."""

from __future__ import annotations

import sys

__all__ = ["out_of_memory"]

_CPU_WORDS = "can't allocate memory"
"""Message of torch's allocator for the CPU, which raises a RuntimeError like any other."""


def out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that memory ran out: Python's, the accelerator's, or that of a tensor on the CPU.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # an error of torch is there only where torch is
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_WORDS in str(error)
