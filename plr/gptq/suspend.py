"""`Suspended`: a computation that can stop in the middle of someone else's code and go on later.

The walk has to stop a model's forward inside each linear layer, for every calibration batch, and go on when the layer
is quantized. Model code is not written as generators, so each computation gets a thread of its own. Exactly one thread
runs at any time: `resume` hands control over and waits, `pause` hands it back and waits. No two threads ever touch the
model together; there are no races.

- `no_grad` and the current device belong to a thread in torch: the walk enters them inside the function it passes here.
- An exception in the computation ends it and is raised by `resume`, with its traceback.
- `cancel` raises `Cancelled` inside a paused computation, so that its `finally` blocks run, and waits for its end.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Cancelled", "Suspended"]

T = TypeVar("T")


class Cancelled(BaseException):
    """Raised inside a paused computation to end it. Not an `Exception`: model code must not swallow it."""


class Suspended(Generic[T]):
    """A computation `run(pause)` that hands out values of type T by calling `pause(value)` and stops there."""

    def __init__(self, run: Callable[[Callable[[T], None]], object]) -> None:
        self._run = run
        self._go = threading.Semaphore(0)  # released to let the computation run
        self._back = threading.Semaphore(0)  # released to let the caller run
        self._value: T | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True, name="gptq-batch")
        self._started = False
        self.done = False

    def resume(self) -> T | None:
        """Run until the next `pause`, whose value is returned, or to the end: None, and `done` is set."""
        if self.done:
            raise RuntimeError("resume() after the end of the computation")
        if self._started:
            self._go.release()
        else:
            self._started = True
            self._thread.start()
        self._back.acquire()
        if self.done:
            self._thread.join()
            if self._error is not None:
                raise self._error
            return None
        value, self._value = self._value, None
        return value

    def cancel(self) -> None:
        """End the computation where it is paused. Does nothing when it has ended or never started."""
        if self._started and not self.done:
            self._cancelled = True
            self._go.release()
            self._thread.join()
            self.done = True

    def _main(self) -> None:
        try:
            self._run(self._pause)
        except Cancelled:
            pass
        except BaseException as error:  # handed to the caller, whatever it is
            self._error = error
        self.done = True
        self._back.release()

    def _pause(self, value: T) -> None:
        self._value = value
        self._back.release()
        self._go.acquire()
        if self._cancelled:
            raise Cancelled
