"""The processes that train one adapter together: what a launcher (`accelerate launch`, `torchrun`) leaves in the environment.

A launcher sets all of `LAUNCHED`. A cluster's shell or a container often sets some of them, with nobody to join: the libraries
would wait for a process that nobody started, and a batch divided by such a `WORLD_SIZE` would be a smaller one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from plr.errors import UsageError

__all__ = ["LAUNCHED", "is_follower", "strays_ignored", "world_size"]

log = logging.getLogger(__name__)

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment of a process that a launcher has started."""
STRAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which accelerate takes a process for one of several."""


def world_size() -> int:
    """Count the processes that train together; 1 without a launcher.

    Raises:
        UsageError: ranks and counts that no launcher sets.
    """
    return _rank_and_size()[1]


def is_follower() -> bool:
    """Tell the processes of a launcher that follow the first one, which alone writes to the store.

    Raises:
        UsageError: ranks and counts that no launcher sets.
    """
    return _rank_and_size()[0] > 0


@contextmanager
def strays_ignored() -> Generator[None]:
    """Hide the variables of `STRAY` inside the context where no launcher has set them, and say so."""
    hidden = {} if _is_launched() else {name: os.environ.pop(name) for name in STRAY if name in os.environ}
    if hidden:
        found = ", ".join(f"{name}={value}" for name, value in hidden.items())
        missing = ", ".join(name for name in LAUNCHED if name not in {**hidden, **os.environ})
        log.warning(
            "%s in the environment, without %s: no launcher started this process, and it trains alone", found, missing
        )
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_launched() -> bool:
    return all(name in os.environ for name in LAUNCHED)


def _rank_and_size() -> tuple[int, int]:
    if not _is_launched():
        return 0, 1
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    _number("LOCAL_RANK")
    if not rank < size:
        raise UsageError(
            f"RANK is {rank} and WORLD_SIZE {size} in the environment",
            expected="a rank below the number of processes, as a launcher sets them",
            hint="unset both, or start with accelerate launch",
        )
    return rank, size


def _number(name: str) -> int:
    value = os.environ[name]
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UsageError(
            f"{name} is {value!r} in the environment", expected="a number, as a launcher sets it", hint=f"unset {name}"
        )
    return int(value)
