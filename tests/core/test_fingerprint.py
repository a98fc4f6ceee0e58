"""Fingerprints: one spelling a value, refusals of what has none, hashes of files and folders."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from plr.core.fingerprint import canonical_json, file_sha256, fingerprint, folder_sha256, known_sha256


def test_fingerprint_ignores_key_order_and_tells_types_apart() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(v) for v in (1, 1.0, "1", True, None, [1])}) == 6


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), Path("a")])
def test_fingerprint_refuses_what_has_no_spelling(value: object) -> None:
    with pytest.raises(TypeError, match=r"\$\.a is a"):
        fingerprint({"a": value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fingerprint_refuses_infinite_numbers(value: float) -> None:
    with pytest.raises(ValueError, match=r"\$\[0\] is"):
        fingerprint([value])


def test_fingerprint_refuses_keys_that_are_not_text() -> None:
    with pytest.raises(ValueError, match="keys must be text"):
        canonical_json({1: "a"})


def test_known_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = folder_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_sha256(tmp_path) != before


def test_a_file_is_hashed_once_a_process_and_again_once_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100)
    time.sleep(0.03)  # one tick of the file's clock: until then nothing is remembered
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return file_sha256(path)

    monkeypatch.setattr("plr.core.fingerprint.file_sha256", counted)
    assert known_sha256(file) == known_sha256(file) == file_sha256(file)
    assert len(reads) == 1
    before = file.stat()
    with file.open("r+b") as stream:  # one byte, the same inode and size, and the clock of the contents set back
        stream.write(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_sha256(file) == file_sha256(file)
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    os.replace(other, file)
    assert known_sha256(file) == file_sha256(file)
    assert len(reads) == 3
