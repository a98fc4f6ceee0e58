"""Files that are whole or as before, and a full disk in whatever words."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets.builder
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from plr.core import files
from plr.core.files import disk_full, not_writable, write_atomic


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "\ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name stands for the whole file: a rename may reach the disk before the bytes do."""
    events: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files, "flush", lambda path: events.append("flush folder" if path.is_dir() else "flush file"))
    monkeypatch.setattr(Path, "replace", spy)
    write_atomic(tmp_path / "new" / "a.json", "text")
    assert events == ["flush file", "rename", "flush folder"]


def test_threads_that_write_one_file_leave_the_text_of_one_of_them(tmp_path: Path) -> None:
    file, texts = tmp_path / "a.json", [letter * 100_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_atomic(file, text), texts * 4))
    assert file.read_text() in texts
    assert list(tmp_path.iterdir()) == [file]


class OfDatasets(Exception):
    """Whatever says that something failed, and has the reason behind it."""


def behind(cause: BaseException) -> OfDatasets:
    error = OfDatasets("An error occurred while generating the dataset")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/home/x"), True),
        (
            OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
            True,
        ),  # pyarrow
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), True),
        (OSError("Not enough disk space. Needed: 3 GB (download: 1 GB, generated: 2 GB)"), True),
        (behind(OSError(errno.ENOSPC, "No space left on device")), True),
        (PermissionError(errno.EACCES, "Permission denied", "/home/No space left on device"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), False),
        (SafetensorError("Error while deserializing header: header too small"), False),
        (behind(ValueError("a row")), False),
        (ValueError("the disk"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: BaseException, full: bool) -> None:
    assert disk_full(error) == full


def test_the_words_are_those_that_the_libraries_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors names the error number alone (on a full tmpfs: `... (os error 28)`); `datasets` refuses before it writes."""
    with pytest.raises(SafetensorError, match=rf"\(os error {errno.ENOENT}\)") as of_rust:
        save_file({"a": torch.zeros(1)}, tmp_path / "no folder" / "a.safetensors")
    assert not disk_full(of_rust.value)
    monkeypatch.setattr(datasets.builder, "has_sufficient_disk_space", lambda *_, **__: False)
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(OSError, match="Not enough disk space") as refused:
        datasets.load_dataset("json", data_files=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert refused.value.errno is None
    assert disk_full(refused.value)


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EACCES, True), (errno.EPERM, True), (errno.EROFS, True), (errno.ENOSPC, False)]
)
def test_a_folder_for_reading_alone(number: int, expected: bool) -> None:
    assert not_writable(OSError(number, os.strerror(number))) == expected
