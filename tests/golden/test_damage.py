"""Each file of each kind of artifact, broken in each way, against the command that uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run

from plr.core.manifest import MANIFEST

HERE = Path(__file__).parent

RESULT = ("eval", "--limit", "4", "--dtype", "float32")
COMMANDS = {
    "base": [
        ("eval", "{ref}", "--task", "tiny_math", "--limit", "1"),
        ("restore", "{adapter}", "--bits", "2"),
        ("show", "{ref}"),
    ],
    "adapter": [("restore", "{ref}", "--bits", "3"), ("eval", "{ref}", "--limit", "1"), ("show", "{ref}")],
    "restored": [("eval", "{ref}", "--limit", "1"), ("restore", "{adapter}", "--bits", "16"), ("show", "{ref}")],
    "result": [RESULT, ("show", "{ref}")],
}


def flip(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_link(file: Path) -> None:
    file.rename(file.with_name(".kept"))
    file.symlink_to(".kept")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "deleted": lambda file: file.unlink(),
    "folder": make_folder,
    "link": make_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_command_that_uses_a_damaged_file_names_it_and_exits_with_5(
    kind: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "store"
    shutil.copytree(HERE / "store", home)
    monkeypatch.setenv("PLR_HOME", str(home))
    [folder] = (home / kind).iterdir()
    [adapter] = (home / "adapter").iterdir()
    files = sorted(file.name for file in folder.iterdir())
    for name in files:
        if name == MANIFEST and damage in ("flipped", "deleted"):
            continue  # of before the seal; made anew
        kept = tmp_path / "kept"
        shutil.copytree(folder, kept)
        DAMAGES[damage](folder / name)
        for command in COMMANDS[kind]:
            words = [word.format(ref=folder.name, adapter=adapter.name) for word in command]
            code, out, err = run(monkeypatch, capsys, *words)
            assert code == 5, (name, words, out, err)
            assert name in err, (name, words, err)
            assert "defect" not in err
        shutil.rmtree(folder)
        kept.rename(folder)
