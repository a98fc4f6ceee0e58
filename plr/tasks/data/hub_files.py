# pyright: basic
"""Files of a configuration of a data set on the hub, and a folder in which `datasets` finds them.

`datasets` alone knows its rules (cards, patterns, names of splits), and is not asked to download anything: it is shown a folder
in which every file of the commit has its name, and only those that matter now have their bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from plr.core.files import not_writable
from plr.errors import UsageError
from plr.hub.names import write_note

__all__ = ["CARD", "chosen_files", "own_errors", "shown_folder", "workroom"]

CARD = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""The files in which a data set says how it is to be read."""


def workroom(folder: Path, inside: str) -> Path:
    """Return `inside` of the cache; where that is for reading alone, of a folder that goes with the process."""
    home = folder / inside
    try:
        home.mkdir(parents=True, exist_ok=True)
        return home
    except OSError as error:
        if not not_writable(error):
            raise
    home = Path(_own_folder().name) / folder.name / inside
    home.mkdir(parents=True, exist_ok=True)
    return home


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="plr-hub-")


def chosen_files(
    home: Path, name: str, config: str | None, listed: list[str], snapshot: Path, *, data_dir: str | None = None
) -> list[str]:
    """List the files that `config` (or the folder `data_dir`) reads, as `datasets` finds them by name.

    The list is kept in `home`, since a commit does not change.

    `snapshot` holds the card.

    Raises:
        UsageError: no such configuration, no files, or a data set that is a program.
    """
    plan = home / "files.json"
    try:
        return list(json.loads(plan.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        chosen = _chosen(name, config, data_dir, listed, snapshot)
    write_note(plan, json.dumps(chosen))
    return chosen


def _chosen(name: str, config: str | None, data_dir: str | None, listed: list[str], snapshot: Path) -> list[str]:
    short = name.rpartition("/")[2]
    if f"{short}.py" in listed:
        raise UsageError(
            f"{name} on the hub is a script ({short}.py), and no program of a data set is run here",
            hint="most such data sets lie at the revision refs/convert/parquet too; or give local files with --data",
        )
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / short
        _fill(folder, listed, snapshot, CARD)
        try:
            builder = load_dataset_builder(str(folder), config, data_dir=data_dir, cache_dir=temporary)
        except FileNotFoundError as error:
            names = ", ".join(sorted(listed)[:8]) or "nothing"
            raise UsageError(
                f"{name} on the hub has no file of rows where its card says, or none of a known kind",
                expected=f"parquet, JSON lines or CSV; it holds {names}",
            ) from error
        except (ValueError, RuntimeError, ImportError, *own_errors()) as error:
            raise UsageError(
                f"{name} on the hub: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            ) from error
        data_files = [Path(file) for files in (builder.config.data_files or {}).values() for file in files]
        return sorted({file.relative_to(folder).as_posix() for file in data_files})


def shown_folder(home: Path, name: str, listed: list[str], snapshot: Path, real: list[str]) -> Path:
    """Make the folder that shows the `real` files as they lie in `snapshot` and the others empty, made once."""
    folder = home / name.rpartition("/")[2]
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(dir=home))
        within = snapshot.parents[1] in home.parents  # of the cache: then it may be moved, or copied to another machine
        try:
            _fill(part / "new", listed, snapshot, real, seen_from=folder if within else None)
            os.replace(part / "new", folder)
        except OSError:
            if not folder.is_dir():  # else another process has made it meanwhile
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _fill(
    folder: Path, listed: list[str], snapshot: Path, real: Iterable[str], *, seen_from: Path | None = None
) -> None:
    """Make `folder` with links to the `real` files: absolute ones, or as seen from where the folder will be."""
    folder.mkdir(parents=True)
    shown = set(real)
    for path in listed:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path not in shown:
            file.touch()
            continue
        target = (snapshot / path).absolute()
        try:
            file.symlink_to(target if seen_from is None else os.path.relpath(target, (seen_from / path).parent))
        except OSError:
            shutil.copyfile(snapshot / path, file)


def own_errors() -> tuple[type[Exception], ...]:
    """List the errors `datasets` raises beside those of Python."""
    from datasets.exceptions import DatasetsError

    return (DatasetsError,)
