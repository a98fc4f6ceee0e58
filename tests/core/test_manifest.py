"""The manifest: every bit of it is sealed, and whatever lies in its place is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from plr.core.manifest import MANIFEST, read_manifest, write_manifest
from plr.errors import IntegrityError

HASH = "0" * 64


def content(**changes: object) -> dict[str, Any]:
    return {
        "kind": "base",
        "fingerprint": HASH,
        "label": "tiny",
        "step": {"kind": "base"},
        "inputs": [],
        "metrics": {"loss": 0.5, "text": "\u65e5\u672c"},
        "files": {"weights": {"sha256": HASH, "size": 3}},
        "seconds": 1.5,
        "provenance": {"date": "2026-11-26T12:00:00+00:00"},
        **changes,
    }


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    write_manifest(path, content())
    raw = path.read_bytes()
    assert read_manifest(path)[0].metrics["loss"] == 0.5
    for place in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError):
            read_manifest(path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    write_manifest(path, content())
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(IntegrityError):
            read_manifest(path)


def test_a_manifest_of_before_has_no_seal(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(content()))
    assert read_manifest(path)[0].sha256 is None


def test_half_a_surrogate_pair_in_a_path_is_kept(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    write_manifest(path, content(label="caf\udce9"))
    assert read_manifest(path)[0].label == "caf\udce9"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {name: {"sha256": HASH, "size": 1}}}
        for name in ("../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a\0b", MANIFEST, "x" * 300, "a/")
    ]
    + [
        {"files": {"a": {"sha256": HASH, "size": -1}}},
        {"files": {"a": {"sha256": HASH, "size": "3"}}},
        {"files": {"a": {"sha256": HASH[:-1], "size": 3}}},
        {"files": {"a": {"sha256": HASH + "\n", "size": 3}}},
        {"files": {"a": 3}},
        {"files": []},
        {"kind": "source"},
        {"kind": []},
        {"fingerprint": "x" * 64},
        {"metrics": None},
        {"step": "s"},
        {"inputs": [{}]},
        {"seconds": -1.0},
        {"provenance": {}},
        {"provenance": {"date": 5}},
        {"provenance": {"date": "2026-11-26"}},
        {"surprise": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_another_form_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / MANIFEST
    for write in (
        lambda: write_manifest(path, content(**changes)),
        lambda: path.write_text(json.dumps(content(**changes))),
    ):
        write()
        with pytest.raises(IntegrityError, match="is not of the form of a manifest"):
            read_manifest(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff"], ids=range(6))
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / MANIFEST
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        read_manifest(path)


def test_only_a_regular_file_of_moderate_size_is_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_manifest(whole, content())
    for name, make in {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "link": lambda path: os.symlink(whole, path),
        "endless": lambda path: os.symlink("/dev/zero", path),
        "gone": lambda path: None,
    }.items():
        make(tmp_path / name)
        with pytest.raises(IntegrityError, match=name):
            read_manifest(tmp_path / name)
    with whole.open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(IntegrityError, match="more than any manifest"):
        read_manifest(whole)
