"""Removal of artifacts: which go, what in the store was made from them, and how they go.

1. `Removal.plan` chooses: by name, by age, or what no result and no restored adapter needs. What others in the store were made
   from is refused where it was named, and passed over where it was not; `with_dependents` takes the others too.
2. `Removal.remove` looks at the store once more, then takes each away, what was made of others first: its lock is held, it is
   renamed to `.removed-<hash>-<time>`, and that folder is deleted. A kill leaves whole artifacts and leftovers (`plr gc`), never
   a half, and never one that lacks what it was made from.

What is made of what stands in the manifests: the inputs of a step, and every path in it that leads into an artifact (a merged
checkpoint that was quantized again, a base that was used by its folder). An artifact that is removed can be made again from the
same settings, with the same hash.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import cast

from plr.core.artifact import Artifact
from plr.core.collect import folder_bytes, is_held, take_away
from plr.core.specs import KINDS
from plr.core.store import Store
from plr.errors import IntegrityError, PlrError, UsageError

__all__ = ["Removal", "age_of"]

UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
AGE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([hdw])")
PARTIAL = ".partial-"
SHOWN = 8


def age_of(text: str) -> float:
    """Read an age in seconds.

    >>> age_of("36h"), age_of("0.5d")
    (129600.0, 43200.0)

    Raises:
        UsageError: no number of hours, days or weeks.
    """
    found = AGE.fullmatch(text)
    if found is None:
        raise UsageError(f"--older is {text!r}", expected="hours, days or weeks: 12h, 30d, 8w")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class _Made:
    """The artifacts of a store, and which of them each was made from."""

    artifacts: dict[Path, Artifact]
    inputs: dict[Path, set[Path]]
    broken: list[IntegrityError]
    """Artifacts whose manifest cannot be read: nobody knows what they were made from."""

    @classmethod
    def read(cls, store: Store) -> _Made:
        found = {artifact.path: artifact for artifact in store.all()}
        by_hash: dict[str, set[Path]] = {}
        by_place: dict[Path, Path] = {}
        for path in found:
            by_hash.setdefault(_hash(path), set()).add(path)
            by_place[path.resolve()] = path
        inputs: dict[Path, set[Path]] = {}
        broken: list[IntegrityError] = []
        for path, artifact in found.items():
            try:
                record = artifact.record
            except IntegrityError as error:
                broken.append(error)
                continue
            needs = set[Path]().union(*(by_hash.get(need.fingerprint[:12], set[Path]()) for need in record.inputs))
            for place in _paths(record.step):
                needs |= {by_place[one] for one in (place, *place.parents) if one in by_place}
            inputs[path] = needs - {path}
        return cls(found, inputs, broken)

    @cached_property
    def outputs(self) -> dict[Path, set[Path]]:
        """Those that were made from each, directly."""
        found: dict[Path, set[Path]] = {}
        for path, needs in self.inputs.items():
            for need in needs:
                found.setdefault(need, set()).add(path)
        return found

    def made_from(self, paths: set[Path]) -> set[Path]:
        """List what was made of `paths`, and of that, and so on."""
        return _closure(paths, self.outputs)

    def needed_by(self, paths: set[Path]) -> set[Path]:
        """List what `paths` were made from, and what that was made from, and so on."""
        return _closure(paths, self.inputs)

    def outermost_first(self, paths: set[Path]) -> list[Path]:
        """Order `paths` so that each stands before what it was made from.

        Raises:
            IntegrityError: two were made from each other.
        """
        chosen = [path for path in self.artifacts if path in paths]
        inner = {path: sorted(self.inputs.get(path, set[Path]()) & paths) for path in chosen}
        try:
            return [*TopologicalSorter(inner).static_order()][::-1]
        except CycleError as error:
            raise IntegrityError(f"artifacts of the store were made from each other: {error.args[1][0]}") from error


def _closure(paths: set[Path], arrows: dict[Path, set[Path]]) -> set[Path]:
    """List what is reached from `paths` by one arrow or more."""
    found: set[Path] = set()
    queue = set(paths)
    while queue:
        queue = set[Path]().union(*(arrows.get(path, set[Path]()) for path in queue)) - found
        found |= queue
    return found


@dataclass
class Removal:
    """Artifacts that are to be removed, and in words whatever is left alone."""

    store: Store
    artifacts: list[Artifact] = field(default_factory=list[Artifact])
    """Those that go, in the order in which they go."""
    dependents: set[Path] = field(default_factory=set[Path])
    """Those of them that were not chosen: they were made from one that was."""
    sizes: dict[Path, int] = field(default_factory=dict[Path, int])
    alone: list[str] = field(default_factory=list[str])
    named: set[Path] = field(default_factory=set[Path])
    """Those that were asked for by name."""
    gone: list[Path] = field(default_factory=list[Path])
    freed: int = 0
    """Bytes of what was removed."""

    @property
    def bytes(self) -> int:
        """Bytes of what goes."""
        return sum(self.sizes.values())

    @property
    def left(self) -> set[Path]:
        """Those that were asked for by name, and are still there."""
        return self.named - set(self.gone)

    @classmethod
    def plan(
        cls,
        store: Store,
        refs: Sequence[str] = (),
        *,
        older: str | None = None,
        unused: bool = False,
        with_dependents: bool = False,
    ) -> Removal:
        """Choose what goes: `refs`, or what is `older` than that, or `unused`, or both of these.

        Unused are the bases and adapters from which no result and no restored adapter of the store was made, neither directly
        nor by way of others. Results and restored adapters are never unused. Ages are taken from the dates on record.

        Raises:
            UsageError: nothing that can be found was named; others were made from it; or a step is being made in the store, and
                nobody knows what it needs.
            IntegrityError: with `older` or `unused`, an artifact whose manifest cannot be read.
        """
        if bool(refs) == (older is not None or unused):
            raise UsageError(
                "artifacts and a rule were given" if refs else "nothing was named that is to be removed",
                expected="REF ..., or --older AGE, --unused or both",
                hint="plr ls lists what is there",
            )
        seconds = None if older is None else age_of(older)
        named = {store.named(ref).path for ref in refs}
        made = _Made.read(store)
        running = _running(store.home)
        plan = cls(store, named=set(named))
        if not refs:
            if made.broken:
                error = made.broken[0]
                raise IntegrityError(
                    f"nobody knows what {len(made.broken)} artifacts were made from; the first: {error.message}",
                    expected="manifests that can be read",
                    hint="make them again, or remove them by name: plr rm NAME",
                )
            if running:
                raise UsageError(
                    f"{len(running)} steps are being made in {store.home}, and nobody knows what they need",
                    expected="a store that no run is at work in",
                    hint="wait for the run, or name what is to go",
                )
            named = plan._chosen(made, seconds, unused)
        elif running:
            plan.alone.append(
                f"a run is at work in {store.home}: what it needs and does not find, it ends with an error"
            )
        if with_dependents:
            plan.dependents = made.made_from(named) - named
        elif refs:
            _refuse_needed(made, named)
        else:
            named = plan._pruned(made, named)
        plan._measure(made, named | plan.dependents)
        return plan

    def _chosen(self, made: _Made, seconds: float | None, unused: bool) -> set[Path]:
        chosen = set(made.artifacts)
        if unused:
            roots = {path for path in chosen if path.parent.name in ("restored", "result")}
            chosen -= roots | made.needed_by(roots)
        if seconds is not None:
            before = time.time() - seconds
            chosen = {path for path in chosen if made.artifacts[path].record.timestamp < before}
        return chosen

    def _pruned(self, made: _Made, chosen: set[Path]) -> set[Path]:
        """Leave out what others that stay were made from, and say so."""
        kept = made.needed_by(set(made.artifacts) - chosen) & chosen
        for path in sorted(kept):
            user = min(made.made_from({path}) - chosen)
            self.alone.append(f"{path} is needed: {user.name} was made from it")
        return chosen - kept

    def _measure(self, made: _Made, paths: set[Path]) -> None:
        """Take the size of what goes; leave alone what cannot go, and all it was made from."""
        if not paths:
            return
        device = self.store.home.stat().st_dev
        stuck: dict[Path, str] = {}
        for path in paths:
            if path.parent.is_symlink():
                stuck[path] = f"{path.parent} is a link: what lies behind it is left alone"
            elif isinstance(found := folder_bytes(path, device), str):
                stuck[path] = found
            elif self._is_held(path):
                stuck[path] = f"{path} is in use now"
            else:
                self.sizes[path] = found
        self.alone += sorted(set(stuck.values()))
        self._leave_needed(made, set(stuck))
        self.artifacts = [made.artifacts[path] for path in made.outermost_first(set(self.sizes))]

    def _is_held(self, path: Path) -> bool:
        try:
            return is_held(self.store.home, _hash(path))
        except OSError:  # said when it is to be removed
            return False

    def _leave_needed(self, made: _Made, staying: set[Path]) -> None:
        for path in sorted(made.needed_by(staying) & self.sizes.keys()):
            del self.sizes[path]
            self.alone.append(f"{path} is needed by one that is left alone")

    def remove(self) -> list[Path]:
        """Remove the artifacts; return the folders that are gone, and note in `alone` why others are not."""
        if not self.artifacts:
            return self.gone
        home = self.store.home
        device = home.stat().st_dev
        made = _Made.read(self.store)
        staying = set(made.artifacts) - self.sizes.keys()
        needed = made.needed_by(staying)
        for artifact in self.artifacts:
            path = artifact.path
            if path in needed:
                self.alone.append(f"{path} is needed by one that is left alone")
                continue
            now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            aside = path.with_name(f".removed-{_hash(path)}-{now}")
            reason = take_away(home, path, _hash(path), device, aside=aside)
            if reason:
                self.alone.append(reason)
            else:
                self.freed += self.sizes[path]
            if path.exists():
                needed |= made.needed_by({path})
            else:
                self.gone.append(path)
        return self.gone


def _refuse_needed(made: _Made, named: set[Path]) -> None:
    others = sorted(made.made_from(named) - named)
    if others:
        shown = ", ".join(f"{path.name} ({path.parent.name})" for path in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UsageError(
            f"{len(others)} artifacts were made from what is to be removed: {shown}{more}",
            expected="artifacts that no other one in the store was made from",
            hint="--with-dependents removes those too; --dry-run beside it shows what that is",
        )


def _running(home: Path) -> list[str]:
    """List the hashes of the steps that are being made in a store: their folder is there, and their lock is held."""
    found = [path.name.removeprefix(PARTIAL) for kind in KINDS for path in (home / kind).glob(f"{PARTIAL}*")]
    try:
        return [short for short in found if is_held(home, short)]
    except OSError as error:
        raise PlrError(
            f"the locks of {home} cannot be taken: {error.strerror}", hint="is this store yours to write?"
        ) from error


def _hash(path: Path) -> str:
    return path.name.rpartition("-")[2]


def _paths(value: object) -> Iterator[Path]:
    """Yield every absolute path in a step."""
    if isinstance(value, dict):
        for key, part in cast("dict[str, object]", value).items():
            if key == "path" and isinstance(part, str) and part.startswith("/") and "\0" not in part:
                yield Path(part).resolve()
            else:
                yield from _paths(part)
    elif isinstance(value, list):
        for part in cast("list[object]", value):
            yield from _paths(part)
