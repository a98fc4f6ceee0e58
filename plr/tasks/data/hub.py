# pyright: basic
"""Rows from a data set on the Hugging Face hub.

`datasets` decides which files a configuration has and reads them; which bytes they are is for `plr.hub` to see to:

1. the card of the data set is fetched, and `datasets` is shown a folder with the card and an empty file for every other one of
   the commit: from names alone it says which files the configuration reads;
2. these are fetched and compared with the listing, whole or not at all: a configuration with a missing shard is not read;
3. `datasets` is shown the same folder with these files in it, so that it reads them without a network.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plr.core.files import disk_full
from plr.core.fingerprint import fingerprint
from plr.errors import DataError, DiskFullError, HubDataUnreachable, HubUnreachable, PlrError, ResourceError, UsageError
from plr.hub import cached_sha, commit_sha, fetch, is_offline, is_sha, listing, repo_folder
from plr.tasks.data.hub_files import CARD, chosen_files, own_errors, shown_folder, workroom
from plr.tasks.data.sources import Row

__all__ = ["HubData", "HubSource", "hub_advice"]


@dataclass(frozen=True)
class HubData:
    """A data set on the hub.

    `splits` maps our names to theirs; the name `all` stands for the only split of the data set.
    """

    id: str
    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    """The folder with the rows, where the commit has others too and no card that says so."""
    splits: Mapping[str, str] = field(default_factory=lambda: {name: name for name in ("train", "validation", "test")})


def hub_advice(task: str, hub: HubData, *, offline: bool) -> str:
    """Advise what to do without the data set of `task`."""
    own = f"--data FOLDER with rows of {task} (train.jsonl, test.jsonl)"
    if not offline:
        return f"give {own}"
    at = f" --revision {hub.revision}" if hub.revision else ""
    return f"fetch it once, with a network: hf download --repo-type dataset {hub.id}{at}; or give {own}"


class HubSource:
    """A data set at a commit, in the hub cache, so that a second read needs no network. `id` may be a folder, too."""

    def __init__(self, task: str, hub: HubData, revision: str | None) -> None:
        self.task, self.hub = task, replace(hub, revision=revision or hub.revision)
        self.revision = self.hub.revision
        self.files: dict[str, str] = {}
        """Files that were read: file -> sha256."""

    @property
    def description(self) -> str:
        part = self.hub.config or self.hub.data_dir
        name = f"{self.hub.id} ({part})" if part else self.hub.id
        return f"{name}@{self.revision}" if self.revision else name

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.hub.splits)

    def read(self, split: str) -> list[Row]:
        """Read all rows of one split.

        Raises:
            HubDataUnreachable: the data set is not in the cache, and the hub cannot be asked.
            DataError: the hub does not give it, or it has no such configuration or split.
            IntegrityError: the hub sends other bytes than it promises.
            DiskFullError: the disk is full.
        """
        theirs = self.hub.splits[split]
        try:
            folder = self.hub.id if _is_folder(self.hub.id) else str(self.fetch(offline=is_offline(False)))
            rows = _load(folder, self.hub, theirs)
        except (PlrError, OSError, ValueError, RuntimeError, ImportError, StopIteration, *own_errors()) as error:
            if isinstance(error, PlrError) and (isinstance(error, DataError) or not isinstance(error, UsageError)):
                raise
            cause = _cause(error)
            _check_disk(cause, self.hub.id)
            kind = HubDataUnreachable if isinstance(cause, HubUnreachable) else DataError
            raise kind(
                f"the {theirs} split of {self.description} cannot be loaded: {_first_line(cause)}",
                expected=getattr(error, "expected", None),
                hint=getattr(error, "hint", None) or hub_advice(self.task, self.hub, offline=is_offline(False)),
            ) from error
        where = f"{self.description}, {theirs}"
        return [Row(split, index, dict(values), f"{where} row {index}") for index, values in enumerate(rows)]

    def fetch(self, *, offline: bool) -> Path:
        """Fetch a folder that `datasets` reads, with every file of the configuration, whole and compared.

        Raises:
            UsageError: it cannot be had; the message says why, and what to do.
            IntegrityError: the hub sends other bytes than it promises.
            DiskFullError: the disk is full.
        """
        name, advice = self.hub.id, hub_advice(self.task, self.hub, offline=offline)
        sha = self._commit(offline, advice)
        options: dict[str, Any] = {"offline": offline, "advice": advice}
        card = fetch("dataset", name, sha, lambda listed: [path for path in CARD if path in listed], **options)
        # Which files a configuration has may change with the library that says so.
        within = [self.hub.data_dir] if self.hub.data_dir else []
        key = fingerprint([self.hub.config, version("datasets"), *within])[:12]
        home = workroom(repo_folder("dataset", name), f"plr/{sha}/{key}")
        listed = list(listing("dataset", name, sha, **options))
        wanted = chosen_files(home, name, self.hub.config, listed, card.folder, data_dir=self.hub.data_dir)
        data = fetch("dataset", name, sha, lambda _: wanted, **options)
        self.revision, self.files = sha, card.files | data.files
        return shown_folder(home, name, listed, data.folder, list(self.files))

    def _commit(self, offline: bool, advice: str) -> str:
        if is_sha(self.revision):
            return str(self.revision)
        if not offline:
            return commit_sha("dataset", self.hub.id, self.revision, advice=advice)
        sha = cached_sha("dataset", self.hub.id, self.revision)
        if sha is None:
            at = f" at {self.revision}" if self.revision else ""
            raise HubUnreachable(f"plr is offline, and {self.hub.id}{at} from the hub is not in the cache", hint=advice)
        return sha


def _is_folder(name: str) -> bool:
    """Tell whether `name` is a path. What has the form of a hub id is one, whatever lies in the working folder."""
    return name.startswith(".") or os.path.isabs(name)


def _load(folder: str, hub: HubData, split: str) -> Any:
    from datasets import load_dataset  # seconds to import, needed by no other source
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # it copies what lies here already
    try:
        return load_dataset(folder, hub.config, data_dir=hub.data_dir, split=split)
    finally:
        if shown:
            enable_progress_bars()


def _cause(error: BaseException) -> BaseException:
    """Find the cause of an error: `datasets` says that something went wrong, and has the reason behind it."""
    while isinstance(error, own_errors()) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_disk(error: BaseException, name: str) -> None:
    """Say it if the folder to which `datasets` writes the rows is at fault, and not the rows.

    Raises:
        ResourceError: it is.
    """
    from datasets import config

    if disk_full(error):
        raise DiskFullError(
            f"the disk is full: {name} does not fit into the cache of datasets, {config.HF_DATASETS_CACHE}",
            hint="make room, or name a folder on a larger disk in HF_DATASETS_CACHE",
        ) from error
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.ENOENT:
        raise ResourceError(
            f"{error.filename}: {error.strerror}",
            hint=f"rows are written to {config.HF_DATASETS_CACHE}: name a folder that can be written in HF_DATASETS_CACHE",
        ) from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, StopIteration):
        return "its files hold no rows"
    text = error.message if isinstance(error, PlrError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
