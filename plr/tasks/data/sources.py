"""Sources of rows. Rows are read one split at a time, when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from plr.tasks.types import Fields

__all__ = ["GeneratedSource", "Row", "Source"]


class Row(NamedTuple):
    """One row of a source: `position` counts rows of that split from 0, `where` names it for people."""

    split: str
    position: int
    values: Fields
    where: str


class Source(Protocol):
    """`splits` are the names that `read` takes: some of train, validation, test, or `all` alone."""

    @property
    def splits(self) -> tuple[str, ...]: ...

    @property
    def description(self) -> str: ...

    def read(self, split: str) -> list[Row]: ...


class GeneratedSource:
    """Rows that a task makes itself."""

    description = "generated"
    splits = ("train", "validation", "test")

    def __init__(self, rows: Mapping[str, list[dict[str, str]]]) -> None:
        self.rows = rows

    def read(self, split: str) -> list[Row]:
        return [
            Row(split, index, values, f"generated {split} row {index}") for index, values in enumerate(self.rows[split])
        ]
