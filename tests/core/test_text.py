"""One reader of text: marks, other encodings, ends of lines, JSON that says a thing twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plr.core.text import json_lines, read_text
from plr.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_names_the_encoding(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes("caf\u00e9\r\n\u2028x\x85y\n".encode(encoding))
    assert read_text(file) == "caf\u00e9\r\n\u2028x\x85y\n"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_other_bytes_are_refused_by_line(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes("one\ncaf\u00e9\n".encode(encoding))
    with pytest.raises(DataError, match=r"line 2: not UTF-8 text \(byte 7\)"):
        read_text(file)


def test_what_is_no_regular_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(DataError, match="no regular file"):
            read_text(tmp_path / name)


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "x\u2028y\x85z"}\r\n\n{"a": 2}', encoding="utf-8")
    assert [value for value, _ in json_lines(file)] == [{"a": "x\u2028y\x85z"}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "why"),
    [('{"a": 1, "a": 2}', "stands twice"), ("[" * 100_000, "not JSON"), (f'{{"a": {"9" * 5000}}}', "not JSON")],
)
def test_a_line_that_cannot_be_one_thing_is_refused(line: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n" + line + "\n")
    with pytest.raises(DataError, match=f"(?s)line 2.*{why}"):
        list(json_lines(file))
