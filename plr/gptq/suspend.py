"""`Suspended`: a computation that can stop in the middle of someone else's code and go on later.

The walk has to stop a model's forward inside each linear layer, for every calibration batch, and go on when the layer
is quantized. Model code is not written as generators, so each computation gets a stack of its own: a greenlet. All of
them run in the caller's thread, one at a time, each until it hands control back; there are no races, and one pool of
OpenMP workers serves them all (a thread for each would bring a pool of its own, and idle workers spin).

- What belongs to the thread (grad mode, autocast, the current device) is shared by all: who enters such a mode inside a
  computation leaves it before `pause`.
- An exception in the computation ends it and is raised by `resume`, with its traceback.
- `cancel` raises `Cancelled` inside a paused computation, so that its `finally` blocks run.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from greenlet import greenlet

__all__ = ["Cancelled", "Suspended"]

T = TypeVar("T")


class Cancelled(BaseException):
    """Raised inside a paused computation to end it. Not an `Exception`: model code must not swallow it."""


class Suspended(Generic[T]):
    """A computation `run(pause)` that hands out values of type T by calling `pause(value)` and stops there."""

    def __init__(self, run: Callable[[Callable[[T], None]], object]) -> None:
        self._run = run
        self._stack: Any = greenlet(self._main)
        self._stack.gr_context = contextvars.copy_context()
        self.done = False

    def resume(self) -> T | None:
        """Run until the next `pause`, whose value is returned, or to the end: None, and `done` is set."""
        if self.done:
            raise RuntimeError("resume() after the end of the computation")
        try:
            value = self._stack.switch()
        finally:
            self.done = self._stack.dead
        return None if self.done else value

    def cancel(self) -> None:
        """End the computation where it is paused. Does nothing when it has ended or never started."""
        if self._stack and not self.done:
            try:
                self._stack.throw(Cancelled)
            except Cancelled:
                pass
            finally:
                self.done = True

    def _main(self) -> None:
        self._run(self._pause)

    def _pause(self, value: T) -> None:
        self._stack.parent.switch(value)
