"""Write an export: whole or not at all, with a card and a record of what it is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plr.core.files import flush, flush_tree, write_atomic, write_mode
from plr.core.fingerprint import JsonObject, file_sha256
from plr.core.provenance import provenance
from plr.core.quiet import quiet_libraries
from plr.core.runtime import Runtime
from plr.core.store import Store
from plr.errors import UsageError
from plr.export.card import MADE, Carded, card_text, eval_results, scores_of
from plr.export.work import ExportFormat, Target, Work

__all__ = ["RECORD", "Exported", "WrittenCard", "check_place", "export", "write_card"]

RECORD = "plr-export.json"
"""The file that says what an exported folder is, with the sha256 of every other file in it."""


@dataclass(frozen=True)
class Exported:
    """A written folder and its record."""

    folder: Path
    record: JsonObject


def check_place(folder: Path, *, force: bool) -> None:
    """Refuse a place where something lies, but with `force` an earlier export.

    Raises:
        UsageError: what lies there would be lost.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    ours = folder.is_dir() and not folder.is_symlink() and (folder / RECORD).is_file()
    if not ours:
        raise UsageError(
            f"{folder} exists and is not an empty folder", hint="choose another --output: nothing is overwritten"
        )
    if not force:
        raise UsageError(
            f"{folder} holds an earlier export", hint="add --force to write it anew, or choose another --output"
        )


def export(
    target: Target,
    row: ExportFormat,
    folder: Path,
    store: Store,
    runtime: Runtime,
    *,
    force: bool = False,
    shard_bytes: int | None = None,
) -> Exported:
    """Write `target` in a format to `folder`: beside it first, then renamed.

    Raises:
        UsageError: the format does not hold the target, or something lies at `folder`.
        PlrError: see the writers of the formats.
    """
    quiet_libraries()
    row.check(target)
    folder = folder.absolute()
    check_place(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        place = partial / "export"
        place.mkdir()
        sizes = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
        made = row.write(Work(target, place, store, runtime, **sizes))
        (place / "README.md").write_text(card_text(target, store, row), encoding="utf-8")
        mode = write_mode(place)
        for file in place.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        files = {
            file.relative_to(place).as_posix(): {"sha256": file_sha256(file), "size": file.stat().st_size}
            for file in sorted(place.rglob("*"))
            if file.is_file()
        }
        record: JsonObject = {
            "format": row.name,
            "target": target.model_dump(mode="json"),
            "fingerprint": target.fingerprint,
            "made": made,
            "files": files,
            "provenance": provenance(),
        }
        (place / RECORD).write_text(
            json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        (place / RECORD).chmod(mode)
        flush_tree(place)
        if folder.exists():
            check_place(folder, force=force)
            os.rename(folder, partial / "before")
        os.rename(place, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, record)


@dataclass(frozen=True)
class WrittenCard:
    """A model card, the files that were written of it, and the scores that have no place in `.eval_results`."""

    text: str
    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()


def write_card(target: Carded, store: Store, folder: Path | None) -> WrittenCard:
    """Write the card of `target`, and its `.eval_results`, into `folder`; without one only the text is made.

    Raises:
        UsageError: `folder` is no folder, or holds a README.md that is no card of plr.
    """
    text = card_text(target, store)
    results, left = eval_results(scores_of(target, store))
    if folder is None:
        return WrittenCard(text, left_out=tuple(left))
    readme = folder / "README.md"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder", expected="a folder for README.md and .eval_results/")
    if readme.exists() and MADE not in readme.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{readme} is there, and plr did not write it", hint="move it away: nothing is overwritten")
    write_atomic(readme, text)
    files = [readme]
    for name, content in results.items():
        files.append(folder / ".eval_results" / name)
        write_atomic(files[-1], content)
    return WrittenCard(text, tuple(files), tuple(left))
