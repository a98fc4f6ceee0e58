"""Plan a set of steps: what must be made, inputs first, and which steps make one job.

A *job* is what one worker does at a time: the quantizations of one source, a training, a restoration, or the evaluations of several
adapters on one base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from plr.core.fingerprint import fingerprint
from plr.core.specs import Evaluate, Quantize, Step
from plr.core.store import Store

__all__ = ["Event", "OnEvent", "Plan", "closure", "ready_jobs"]

OnEvent = Callable[["Event"], None]


@dataclass(frozen=True)
class Event:
    """An event of a step: `started`, `progress` (done of total), `made`, `found` or `failed`."""

    what: str
    fingerprint: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    error: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Plan:
    """Every step a study needs, inputs first, and which of them are in the store already."""

    steps: tuple[Step, ...]
    cached: frozenset[str]

    @property
    def missing(self) -> list[Step]:
        return [step for step in self.steps if step.fingerprint not in self.cached]

    @classmethod
    def of(cls, wanted: Iterable[Step], store: Store) -> Plan:
        """Plan `wanted`. Inputs of a step that is in the store already are left out: nothing needs them."""
        steps: dict[str, Step] = {}
        cached: set[str] = set()

        def visit(step: Step) -> None:
            if step.fingerprint in steps:
                return
            if store.get(step) is not None:
                cached.add(step.fingerprint)
            else:
                for need in step.inputs:
                    visit(need)
            steps[step.fingerprint] = step

        for step in wanted:
            visit(step)
        return cls(tuple(sorted(steps.values(), key=lambda step: step.stage)), frozenset(cached))


def closure(wanted: Iterable[Step]) -> list[Step]:
    """Collect `wanted` and every step behind them, inputs first, each once."""
    steps: dict[str, Step] = {}

    def visit(step: Step) -> None:
        for need in step.inputs:
            visit(need)
        steps.setdefault(step.fingerprint, step)

    for step in wanted:
        visit(step)
    return sorted(steps.values(), key=lambda step: step.stage)


def ready_jobs(open_steps: Sequence[Step], done: set[str], workers: int) -> list[list[Step]]:
    """Group the steps whose inputs are all there into jobs.

    Quantizations of one source with one calibration make a job, and so do evaluations on one base; a training or a restoration
    is a job of its own. With several workers a group is cut so that each gets a share.
    """
    ready = [s for s in open_steps if all(need.fingerprint in done for need in s.inputs)]
    ready.sort(key=lambda step: step.stage)
    bases = [s for s in ready if isinstance(s, Quantize)]
    rest: list[list[Step]] = [[s] for s in ready if not isinstance(s, Evaluate | Quantize)]
    evaluations = [s for s in ready if isinstance(s, Evaluate)]
    return [
        *_shared([(_calibrated_source(step), step) for step in bases], workers),
        *rest,
        *_shared([(step.base.fingerprint, step) for step in evaluations], workers),
    ]


def _shared(steps: Sequence[tuple[str, Step]], workers: int) -> list[list[Step]]:
    """Group steps by key, no group larger than a worker's share of all."""
    groups: dict[str, list[Step]] = {}
    for key, step in steps:
        groups.setdefault(key, []).append(step)
    share = max(1, -(-len(steps) // workers))
    return [group[i : i + share] for group in groups.values() for i in range(0, len(group), share)]


def _calibrated_source(step: Quantize) -> str:
    calibration = step.quantization.calibration
    return fingerprint([step.source.fingerprint, None if calibration is None else calibration.identity()])
