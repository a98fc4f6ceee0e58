"""Leftovers: only folders of the store, by their own names, and nothing behind a link."""

from __future__ import annotations

import os
from pathlib import Path

from plr.core.collect import Leftovers
from plr.core.locks import hold

HASHES = [f"{n:012x}" for n in range(6)]


def lay(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"12345")
    return folder


def test_a_link_in_place_of_the_work_folder_is_left_alone_and_said(tmp_path: Path) -> None:
    precious = lay(tmp_path / "scratch" / HASHES[0])
    home = tmp_path / "home"
    home.mkdir()
    (home / ".work").symlink_to(tmp_path / "scratch")
    left = Leftovers.find(home)
    assert left.folders == []
    assert "is a link" in left.alone[0]
    assert left.remove() == []
    assert (precious / "data").exists()


def test_one_strange_thing_does_not_stop_the_rest(tmp_path: Path) -> None:
    home = tmp_path / "home"
    outside = lay(tmp_path / "outside")
    gone = [
        lay(home / "base" / f".partial-{HASHES[0]}"),
        lay(home / "result" / f".broken-{HASHES[1]}-20261126T120000.000001Z"),
        lay(home / ".work" / HASHES[2]),
    ]
    (gone[0] / "link").symlink_to(outside)
    kept = [
        lay(home / ".work" / "notes"),
        lay(home / "base" / ".partial-mine"),
        lay(home / "base" / f"tiny-{HASHES[3]}"),
        lay(home / "base" / ".hidden"),
        lay(home / "elsewhere" / f".partial-{HASHES[0]}"),
    ]
    (home / ".work" / HASHES[4]).symlink_to(outside)
    (home / "base" / f".partial-{HASHES[4]}").symlink_to(outside)
    (home / ".work" / HASHES[5]).write_text("a file")
    os.mkfifo(home / "base" / f".partial-{HASHES[5]}")
    left = Leftovers.find(home)
    assert sorted(left.folders) == sorted(gone)
    assert left.bytes == 15
    assert sorted(left.remove()) == sorted(gone)
    assert not any(path.exists() for path in gone)
    assert all((path / "data").exists() for path in [*kept, outside])
    assert len(left.alone) == 6  # two names, two links, a file, a FIFO


def test_what_is_locked_is_in_use(tmp_path: Path) -> None:
    folder = lay(tmp_path / "base" / f".partial-{HASHES[0]}")
    left = Leftovers.find(tmp_path)
    with hold(tmp_path, HASHES[0]):
        assert Leftovers.find(tmp_path).folders == []
        assert left.remove() == []
    assert "is in use now" in left.alone[0]
    assert Leftovers.find(tmp_path).remove() == [folder]


def test_a_folder_that_becomes_a_link_before_it_is_removed_is_left_alone(tmp_path: Path) -> None:
    outside = lay(tmp_path / "outside")
    folder = lay(tmp_path / "home" / ".work" / HASHES[0])
    left = Leftovers.find(tmp_path / "home")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(outside)
    assert left.remove() == []
    assert (outside / "data").exists()
