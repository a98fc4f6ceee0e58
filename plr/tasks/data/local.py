"""Rows from local files: JSON lines, a JSON list, comma- or tab-separated values. Every error names file and line."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Literal, TypedDict, cast

from plr.core.text import json_lines, json_value, read_text
from plr.errors import DataError
from plr.tasks.data.sources import Row
from plr.tasks.types import Fields

__all__ = ["STEMS", "LocalSource"]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_CELL = 2**31 - 1
"""Characters a cell may have. Python's own limit, of the whole process, is 128 Ki: less than an article."""
_LIMIT = Lock()
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_PARQUET = "write it as JSON lines: pandas.read_parquet(FILE).to_json('rows.jsonl', orient='records', lines=True)"
STEMS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


class _Form(TypedDict):
    """Arguments of `csv.reader`."""

    delimiter: str
    quoting: Literal[0, 3]


class LocalSource:
    """A folder of split files, or one file: the split it is named for (`test.jsonl`), else `all`."""

    def __init__(
        self, path: str, stems: Mapping[str, str] = STEMS, *, named: bool = False, json_holds_lines: bool = False
    ) -> None:
        """Look for files, without reading.

        `stems` says which split a file is, by its name without suffix; `named` that a user wrote them and each must be
        there; `json_holds_lines` that a `.json` has an object a line.

        Raises:
            DataError: nothing there, no file of a known name, one that was named and is missing, or two files for one split.
        """
        root = Path(os.path.expanduser(path))
        self.description = str(path)
        self.json_holds_lines = json_holds_lines
        self.files: dict[str, Path] = {}
        if root.is_file():
            if root.suffix.lower() not in SUFFIXES:
                packed = root.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst")
                raise DataError(
                    f"{root} is not a kind of file that is read",
                    expected="one of " + ", ".join(SUFFIXES),
                    hint="unpack it" if packed else _PARQUET if root.suffix.lower() == ".parquet" else None,
                )
            if named and "all" not in stems.values() and root.stem.lower() not in stems:
                raise DataError(
                    f"{root} is none of the splits that the task file names", expected=" or ".join(map(str, stems))
                )
            self.files[stems.get(root.stem.lower(), "all")] = root
        elif root.is_dir():
            for file in sorted(root.iterdir()):
                split = stems.get(file.stem.lower()) if file.suffix.lower() in SUFFIXES else None
                if split in self.files:
                    raise DataError(
                        f"{root} has two files for {split}: {self.files[split].name} and {file.name}",
                        hint="remove one of them",
                    )
                if split is not None:
                    self.files[split] = file
            if not self.files:
                names = ", ".join(sorted(file.name for file in root.iterdir())[:8]) or "nothing"
                raise DataError(
                    f"the folder {root} has no data file that is known by name; it holds {names}",
                    expected=", ".join(f"{stem}.jsonl" for stem in stems) + "; or .json, .csv, .tsv",
                    hint="name one file, or rename the files after their splits",
                )
            for stem, split in stems.items() if named else ():
                if split not in self.files:
                    raise DataError(
                        f"{root} has no file {stem} for {split}, which the task file names",
                        expected=f"{stem}.jsonl (or .json, .csv, .tsv)",
                    )
        else:
            raise DataError(
                f"there is no data at {root}", expected="a folder with train.jsonl and test.jsonl, or one file"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    def read(self, split: str) -> list[Row]:
        """Read all rows of one file.

        Raises:
            DataError: the file is empty, not UTF-8 or not in the form its name promises.
        """
        path = self.files[split]
        readers = {
            ".jsonl": _json_lines,
            ".json": _json_lines if self.json_holds_lines else _json_list,
            ".csv": _table,
            ".tsv": _table,
        }
        rows = [
            Row(split, index, values, where) for index, (values, where) in enumerate(readers[path.suffix.lower()](path))
        ]
        if not rows:
            raise DataError(f"{path} holds no rows", expected="at least one")
        return rows


def _json_lines(path: Path) -> Iterator[tuple[Fields, str]]:
    for values, where in json_lines(path):
        yield _object(values, where), where


def _json_list(path: Path) -> Iterator[tuple[Fields, str]]:
    hint = "name the file .jsonl if it holds one object a line"
    rows = json_value(read_text(path), str(path), "a list of objects", hint)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds one {type(rows).__name__}", expected="a list of objects")
    for number, values in enumerate(cast("list[object]", rows), 1):
        where = f"{path}, row {number}"
        yield _object(values, where), where


def _table(path: Path) -> Iterator[tuple[Fields, str]]:
    text = read_text(path)
    with _LIMIT, io.StringIO(text, newline="") as stream:
        limit = csv.field_size_limit(_CELL)
        lines = csv.reader(stream, strict=True, **_form(path, text))
        try:
            head = next(lines, [])
            if twice := [name for place, name in enumerate(head) if name and name in head[:place]]:
                raise DataError(f"{path} has two columns called {twice[0]!r}", expected="names of their own")
            for cells in lines:
                if not cells:
                    continue
                where = f"{path}, line {lines.line_num}"
                if len(cells) > len(head):
                    raise DataError(f"{where}: more cells than the head has", expected=f"{len(head)} cells")
                yield dict(zip(head, [*cells, *[None] * (len(head) - len(cells))], strict=True)), where
        except csv.Error as error:
            raise DataError(
                f"{path}, line {lines.line_num}: {error}",
                expected="comma- or tab-separated values",
                hint='a cell that begins with " ends with ", and has "" for a " inside it',
            ) from error
        finally:
            csv.field_size_limit(limit)


def _form(path: Path, text: str) -> _Form:
    """Tell how a table is written: many of tabs know no quotes; a head with semicolons and no comma is separated by them."""
    if path.suffix.lower() == ".tsv":
        lines = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
        is_even = len({len(line) for line in lines}) == 1  # a quoted cell with a tab or a line feed in it would not be
        plain = is_even and any(cell.startswith('"') and not _QUOTED.fullmatch(cell) for line in lines for cell in line)
        return {"delimiter": "\t", "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL}
    head = text.partition("\n")[0]
    return {"delimiter": ";" if ";" in head and "," not in head else ",", "quoting": csv.QUOTE_MINIMAL}


def _object(values: object, where: str) -> Fields:
    if not isinstance(values, dict):
        hint = "name the file .json if it is one list" if isinstance(values, list) else None
        raise DataError(f"{where}: a JSON {type(values).__name__}", expected="a JSON object", hint=hint)
    return cast("Fields", values)
