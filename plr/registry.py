"""One registry for every plug-in point: quantizers, adapters, tasks, engines.

A plug-in is a value under a name. plr's own are registered by decorator when their module is imported; third parties
declare an entry point in the registry's group (`plr.tasks`, `plr.quantizers` ...) and are loaded on first use.
A name that is not there is answered with the nearest ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from plr.errors import PlrError, UnknownNameError

T = TypeVar("T")

__all__ = ["Registry", "did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the sentence that helps after a misspelling, or None when nothing is near.

    >>> did_you_mean("gms8k", ["gsm8k", "tiny_math"])
    'did you mean gsm8k?'
    """
    names = {one.lower(): one for one in known}
    near = [names[one] for one in difflib.get_close_matches(name.lower(), list(names), n=2, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else None


class Registry(Generic[T]):
    """Names to plug-ins of one kind.

    >>> colours = Registry[int]("colour", "plr.colours")
    >>> colours.register("red")(1)
    1
    >>> colours.get("red"), colours.names()
    (1, ['red'])
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self.fallback: Callable[[str], T | None] | None = None
        """Asked for a name that is not registered; what it gives is kept under that name and not listed."""
        self._items: dict[str, T] = {}
        self._others: dict[str, T] = {}
        self._declared: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that puts a plug-in under `name`; a name taken by something else is an error."""

        def put(item: T) -> T:
            if self._items.get(name, item) is not item:
                raise PlrError(f"two {self.kind}s are called {name!r}", hint="rename one of them")
            self._items[name] = item
            return item

        return put

    def get(self, name: str) -> T:
        """Return the plug-in called `name`.

        Raises:
            UnknownNameError: no such name; the message lists the nearest and all known ones.
        """
        if name not in self._items:
            self._load_all()
        if name in self._items:
            return self._items[name]
        if name not in self._others and self.fallback is not None and (item := self.fallback(name)) is not None:
            self._others[name] = item
        if name in self._others:
            return self._others[name]
        raise UnknownNameError(
            f"unknown {self.kind} {name!r}",
            expected="one of " + ", ".join(self.names()),
            hint=did_you_mean(name, self._items),
        )

    def names(self) -> list[str]:
        """List all names, those of other packages too; imports nothing."""
        return sorted({*self._items, *self._points()})

    def loaded(self) -> Mapping[str, T]:
        """Return the plug-ins in memory, by name, as they were registered: plr's own, and others once one has been asked for."""
        return self._items

    def values(self) -> list[T]:
        """Return every plug-in; those of other packages are imported."""
        self._load_all()
        return list(self._items.values())

    def _points(self) -> Mapping[str, EntryPoint]:
        if self._declared is None:
            self._declared = {point.name: point for point in entry_points(group=self.group)}
        return self._declared

    def _load_all(self) -> None:
        for name, point in self._points().items():
            if name not in self._items:
                self._items[name] = point.load()
