"""`plr ls`, `show`, `verify`, `gc` and what uses an artifact, on stores that are not as they should be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.cli.show import watch
from plr.core.manifest import MANIFEST
from plr.core.sources import copies, make_copy, source_key
from plr.core.specs import ModelRef, Quantization, Quantize, Source
from plr.core.store import Artifact, Store
from plr.engines.plan import Event
from plr.errors import UsageError
from plr.lab import Lab

STEP = Quantize(
    source=Source(model=ModelRef(kind="local", name="m[/red]", revision="0" * 64)), quantization=Quantization(bits=4)
)


@pytest.fixture
def plr(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: run(monkeypatch, capsys, *words)


@pytest.fixture
def artifact(home: Path) -> Artifact:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "[").mkdir()
        (folder / "[/red].json").write_text("{}")
        return {"note": "[/bold]"}

    return Store(home).make(STEP, build)[0]


def test_markup_in_names_is_text(plr: Any, artifact: Artifact) -> None:
    for command in ("ls", "show", "verify"):
        code, _, err = plr(command)
        assert code == 0, err
    assert "[/red].json" in plr("show")[1]
    (artifact.path / "[/red].json").write_text("[]")
    for command in ("show", "verify"):
        code, _, err = plr(command)
        assert code == 5
        assert "[/red].json was altered" in err


@pytest.mark.parametrize("thing", ["text", "fifo", "folder", "link", "list", "deep"])
def test_a_manifest_of_any_sort_is_named_by_every_command(plr: Any, artifact: Artifact, thing: str) -> None:
    path = artifact.path / MANIFEST
    path.unlink()
    makers = {
        "text": lambda: path.write_text("{"),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("/dev/zero"),
        "list": lambda: path.write_text("[]"),
        "deep": lambda: path.write_text("[" * 100_000),
    }
    makers[thing]()
    for words in (
        ("ls",),
        ("show",),
        ("verify",),
        ("eval",),
        ("show", str(artifact.path)),
        ("verify", artifact.path.name),
    ):
        code, _, err = plr(*words)
        assert code == 5, (words, err)
        assert MANIFEST in err
        assert "defect" not in err


def test_gc_says_what_it_removes_and_what_it_leaves_alone(plr: Any, home: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "precious").mkdir(parents=True)
    home.mkdir(exist_ok=True)
    (home / ".work").symlink_to(tmp_path / "scratch")
    partial = home / "base" / ".partial-0123456789ab"
    partial.mkdir(parents=True)
    code, out, err = plr("gc")
    assert code == 0
    assert str(partial) in out.replace("\n", "")
    assert "removed 1 leftovers" in out
    assert "is a link" in err
    assert not partial.exists()
    assert (tmp_path / "scratch" / "precious").exists()


def test_copies_of_sources_are_verified_counted_and_collected(plr: Any, artifact: Artifact, home: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 1000)

    used, spare = (make_copy(home, source_key(sha * 64, "float32", ()), "m float32", build) for sha in "0f")
    assert json.loads(plr("verify", "--json")[1]) == {"checked": 1, "broken": [], "copies": 2, "broken_copies": []}
    assert "2 of .gguf sources, 0.00 GB" in plr("doctor")[1]
    assert json.loads(plr("gc", "--dry-run", "--json")[1])["found"] == [str(spare.path)]
    code, out, _ = plr("gc")
    assert code == 0
    assert "removed 1 leftovers" in out
    assert copies(home) == [used]
    (used.path / "model.safetensors").write_bytes(b"y" * 1000)
    code, out, err = plr("verify")
    assert code == 5
    assert "0 of 1 copies of sources are as they were committed" in out
    assert "1 of 1 copies of sources are broken" in err
    assert "plr gc removes them" in err
    assert plr("gc", "--sources")[0] == 0
    assert copies(home) == []
    artifact.check()


def test_gc_leaves_copies_alone_where_a_manifest_does_not_say_what_is_needed(
    plr: Any, artifact: Artifact, home: Path
) -> None:
    copy = make_copy(home, source_key("f" * 64, "float32", ()), "m", lambda folder: None)
    (artifact.path / MANIFEST).write_text("{")
    code, _, err = plr("gc")
    assert code == 0
    assert "which copies are needed cannot be told" in err.replace("\n", " ")
    assert copies(home) == [copy]
    assert plr("gc", "--sources")[0] == 0
    assert copies(home) == []


def test_an_artifact_of_another_store_is_not_made_anew(artifact: Artifact, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "other", offline=True)
    for target in (artifact, str(artifact.path)):
        with pytest.raises(UsageError, match="lies outside of the store"):
            lab.result(target, "tiny_math")
    assert not list((tmp_path / "other").glob("*/*"))


def test_a_folder_anywhere_is_shown_and_verified_as_what_lies_there(
    plr: Any, artifact: Artifact, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact.path, copy)
    shutil.rmtree(artifact.path)
    assert json.loads(plr("show", str(copy), "--json")[1])["path"] == str(copy)
    assert plr("verify", str(copy))[0] == 0
    assert plr("eval", str(copy), "--task", "tiny_math")[0] == 2
    (copy / "[/red].json").write_text("[]")
    assert plr("show", str(copy))[0] == 5
    assert plr("verify", str(copy))[0] == 5


def test_progress_takes_markup_in_names_and_reasons_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    with watch([STEP]) as watcher:
        watcher(Event("started", STEP.fingerprint))
        watcher(Event("failed", STEP.fingerprint, error="[/bold] is no [/file]"))
    assert "m[/red]-gptq-4bit: [/bold] is no [/file]" in capsys.readouterr().err
