from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest

from plr.gptq.suspend import Suspended


def test_values_come_in_order_and_the_end_is_none() -> None:
    def run(pause: Callable[[int], None]) -> None:
        for i in range(3):
            pause(i)

    computation = Suspended[int](run)
    assert [computation.resume() for _ in range(4)] == [0, 1, 2, None]
    assert computation.done


def test_one_runs_at_a_time_and_all_in_the_callers_thread() -> None:
    running, most = 0, 0
    threads: set[int] = set()

    def run(pause: Callable[[int], None]) -> None:
        nonlocal running, most
        for i in range(20):
            running += 1
            most = max(most, running)
            running -= 1
            threads.add(threading.get_ident())
            pause(i)

    computations = [Suspended[int](run) for _ in range(8)]
    for _ in range(21):
        for computation in computations:
            computation.resume()
    assert most == 1
    assert threads == {threading.get_ident()}
    assert all(c.done for c in computations)


def test_an_exception_is_raised_by_resume_with_its_own_type() -> None:
    def run(pause: Callable[[int], None]) -> None:
        pause(1)
        raise KeyError("inside")

    computation = Suspended[int](run)
    assert computation.resume() == 1
    with pytest.raises(KeyError, match="inside"):
        computation.resume()
    with pytest.raises(RuntimeError, match="after the end"):
        computation.resume()


def test_cancel_unwinds_a_paused_computation() -> None:
    unwound: list[str] = []

    def run(pause: Callable[[int], None]) -> None:
        try:
            pause(1)
        except Exception:  # model code that swallows exceptions must not swallow the end
            unwound.append("swallowed")
        finally:
            unwound.append("finally")

    computation = Suspended[int](run)
    computation.resume()
    computation.cancel()
    computation.cancel()
    assert unwound == ["finally"]
    assert computation.done


def test_cancel_before_the_start_does_nothing() -> None:
    Suspended[int](lambda pause: pause(1)).cancel()


def test_context_variables_are_those_of_the_maker() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    variable.set("set")
    computation = Suspended[str](lambda pause: pause(variable.get()))
    assert [computation.resume(), computation.resume()] == ["set", None]
