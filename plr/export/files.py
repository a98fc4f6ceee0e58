"""Files that an export takes over: a tokenizer, and what else lies beside weights."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from plr.bases.given_adapters import TOKENIZER

__all__ = ["TOKENIZER", "copy", "copy_tokenizer", "has_tokenizer", "matches"]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a file name fits one of `patterns`."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def copy(source: Path, folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy the files of `source` whose names fit, contents of links and not the links; return their names."""
    names = sorted(file.name for file in source.iterdir() if file.is_file() and matches(file.name, patterns))
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a tokenizer lies in `folder`."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def copy_tokenizer(folder: Path, *sources: Path) -> None:
    """Copy the tokenizer of the first of `sources` that has one, unless `folder` has its own."""
    if not has_tokenizer(folder):
        for source in sources:
            if has_tokenizer(source):
                copy(source, folder, TOKENIZER)
                return
