"""Copies of sources: made once, sealed, found by key, moved aside when broken, never taken from under a reader."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest

from plr.core.collect import Leftovers
from plr.core.fingerprint import file_sha256
from plr.core.locks import hold
from plr.core.sources import FOLDER, SourceCopy, copies, copy_of, make_copy, source_key, spare
from plr.core.specs import KINDS
from plr.errors import IntegrityError

KEY = source_key("0" * 64, "float32", ("plr", "no-such-package"))


def build(folder: Path) -> None:
    (folder / "weights").write_bytes(b"123")


def test_key_names_content_form_and_readers(tmp_path: Path) -> None:
    copy = make_copy(tmp_path, KEY, "m", build)
    assert copy.record.key == KEY
    assert KEY["versions"]["no-such-package"] is None
    assert copy.is_current
    assert copy_of(tmp_path, KEY) == copy
    others = (("1" * 64, "float32", ("plr",)), ("0" * 64, "bfloat16", ("plr",)), ("0" * 64, "float32", ()))
    assert all(copy_of(tmp_path, source_key(*other)) is None for other in others)
    assert make_copy(tmp_path, KEY, "m", lambda folder: pytest.fail("built twice")) == copy
    assert copy.bytes == 3
    assert copy.files["weights"].sha256 == file_sha256(copy.path / "weights")
    assert stat.S_IMODE((copy.path / "weights").stat().st_mode) & 0o400
    assert FOLDER not in KINDS


def test_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        build(folder)
        raise RuntimeError("half")

    with pytest.raises(RuntimeError, match=r"half"):
        make_copy(tmp_path, KEY, "m", broken)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_two_threads_build_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def slow(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)
        build(folder)

    threads = [threading.Thread(target=make_copy, args=(tmp_path, KEY, "m", slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_copy_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    copy = make_copy(tmp_path, KEY, "m", build)
    moved = SourceCopy(copy.path.rename(copy.path.with_name("0" * 12)))
    with pytest.raises(IntegrityError, match=r"has the key .*, and the folder's hash is '000000000000'"):
        moved.check()


def test_copy_in_the_making_or_being_read_is_not_removed(tmp_path: Path) -> None:
    copy = make_copy(tmp_path, KEY, "m", build)
    assert spare(tmp_path, []) == [copy]
    with hold(tmp_path, copy.path.name):
        assert not copy.remove()
    with copy.reading() as folder:
        assert (folder / "weights").is_file()
        assert not copy.remove()
    assert copy.remove()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_copies_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    make_copy(tmp_path / "far", KEY, "m", build)
    home = tmp_path / "home"
    home.mkdir()
    (home / FOLDER).symlink_to(tmp_path / "far" / FOLDER)
    assert copies(home) == []
    left = Leftovers.find(home)
    left.look_at_copies([], everything=True)
    assert left.folders == []
