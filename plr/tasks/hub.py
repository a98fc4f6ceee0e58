# pyright: basic
"""Rows from a data set on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plr.errors import DataError
from plr.tasks.sources import Row

__all__ = ["HubData", "HubSource"]


@dataclass(frozen=True)
class HubData:
    """A data set on the hub. ``splits`` maps our names to theirs; the name ``all`` stands for the only split of the
    data set."""

    id: str
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {name: name for name in ("train", "validation", "test")})


class HubSource:
    """A data set read with ``datasets.load_dataset`` (and kept in its cache, so that a second read needs no
    network)."""

    def __init__(self, task: str, hub: HubData, revision: str | None) -> None:
        self.task, self.hub, self.revision = task, hub, revision or hub.revision
        name = f"{hub.id} ({hub.config})" if hub.config else hub.id
        self.description = f"{name}@{self.revision}" if self.revision else name

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.hub.splits)

    def read(self, split: str) -> list[Row]:
        """All rows of one split.

        Raises:
            DataError: the data set is not in the cache and cannot be fetched, or has no such configuration or split.
        """
        from datasets import load_dataset  # seconds to import, needed by no other source

        theirs = self.hub.splits[split]
        try:
            rows = load_dataset(self.hub.id, self.hub.config, revision=self.revision, split=theirs)
        except (OSError, ValueError) as error:
            at = f" --revision {self.revision}" if self.revision else ""
            raise DataError(
                f"the {theirs} split of {self.description} cannot be loaded: {_first_line(error)}",
                hint=f"with a network: hf download --repo-type dataset {self.hub.id}{at}; "
                f"without one: --data FOLDER with rows of {self.task} (train.jsonl, test.jsonl)",
            ) from error
        where = f"{self.description}, {theirs}"
        return [Row(split, index, dict(values), f"{where} row {index}") for index, values in enumerate(rows)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
