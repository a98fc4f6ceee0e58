"""One fault at each call that touches the store, in one run of each kind of step; then the same command again.

What must hold at every point: what was committed is unchanged; a failed call ends in one message or in success; the command,
given again, ends with the bytes of a run that nobody disturbed; nothing that was not committed was used on the way, and
nothing is left over.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.forks import Effect, Fault, Forks, Happens, Point
from faults.inputs import STEPS, copied, hashes, make, manifests, write_inputs


@dataclass(frozen=True)
class Trial:
    kind: str
    fault: Fault
    point: Point

    @property
    def part(self) -> str:
        return errno.errorcode.get(self.fault.errno) or {2: "kill in a write"}.get(self.fault.happens, "kill")

    def __str__(self) -> str:
        name = errno.errorcode.get(self.fault.errno, "")
        what = f"{self.fault.happens.name.lower()} {name}".strip()
        return f"{self.kind}: {what} at call {self.point.number}, {self.point.call} of {self.point.path}"


class Points:
    """The stores that a trial starts from and must end with."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.cwd = forks, folder
        write_inputs(folder)
        self.stores = {kind: folder / f"before-{kind}" for kind in STEPS}
        self.ends: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self.points: dict[str, tuple[Point, ...]] = {}
        home = folder / "home"
        for kind in STEPS:
            copied(home, self.stores[kind])
            ran = make(forks, kind, home, self.cwd, fault=Fault())
            assert ran.code == 0, ran.text
            self.points[kind], self.ends[kind] = ran.points, (hashes(home), manifests(home))

    def trials(self) -> Iterator[Trial]:
        """Every fault at every point. A death after a call is one before the next: only after the last it is its own."""
        for kind, points in self.points.items():
            for point in points:
                failures = [(Happens.ONE_FAILS, errno.EIO)]
                if point.effect != Effect.LOOKS:
                    yield Trial(kind, Fault(point.number, Happens.DEATH_BEFORE), point)
                    failures.append((Happens.READ_ONLY, errno.EROFS))
                if point.effect == Effect.GROWS:
                    failures += [(Happens.NO_MORE_ROOM, errno.ENOSPC), (Happens.NO_MORE_ROOM, errno.EDQUOT)]
                if point.call == "write":
                    yield Trial(kind, Fault(point.number, Happens.DEATH_WITHIN), point)
                for happens, number in failures:
                    yield Trial(kind, Fault(point.number, happens, number), point)
            last = [point for point in points if point.effect != Effect.LOOKS][
                -1
            ]  # how often is looked differs between runs
            yield Trial(kind, Fault(last.number, Happens.DEATH_AFTER), last)

    def judge(self, trial: Trial) -> str | None:
        """Run one trial and say what did not hold."""
        home, wrong = copied(self.stores[trial.kind], self.cwd / "home"), []
        before = hashes(home)
        hurt = make(self.forks, trial.kind, home, self.cwd, fault=trial.fault)
        if (
            trial.fault.happens <= Happens.DEATH_AFTER and hurt.code == 0
        ):  # a run with a call fewer than the one counted on
            home = copied(self.stores[trial.kind], home)
            hurt = make(self.forks, trial.kind, home, self.cwd, fault=trial.fault)
        if trial.fault.happens <= Happens.DEATH_AFTER:
            if hurt.code != -9:
                wrong.append(f"it was to be killed and ended with {hurt.code}")
        elif hurt.code < 0 or not hurt.is_clear:
            wrong.append(f"unclear: {hurt.code} {hurt.text[-300:]}")
        after = hashes(home)
        wrong += [f"lost: {name}" for name in before if name not in after]
        wrong += [f"altered: {name}" for name, digest in before.items() if after.get(name, digest) != digest]
        again = make(self.forks, trial.kind, home, self.cwd)
        if again.code != 0:
            wrong.append(f"not made again: {again.code} {again.text[-300:]}")
        if "/." in again.out.replace(str(self.cwd), ""):
            wrong.append("what was not committed is used")
        if (hashes(home), manifests(home)) != self.ends[trial.kind]:
            wrong.append("other bytes than those of a run that nobody disturbed")
        left = [str(path.relative_to(home)) for path in (*home.glob(".work/*"), *home.glob("*/.*"))]
        if left and self.forks.run("gc", home=home, cwd=self.cwd).code:
            wrong.append(f"left over: {left}")
        shutil.rmtree(home)
        return "; ".join(wrong) or None
