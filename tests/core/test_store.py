"""The store: commit last, share by content, say what is broken."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from plr.core.specs import ModelRef, Quantization, Quantize, Source
from plr.core.store import MANIFEST, Store
from plr.errors import DiskFullError, IntegrityError, PlrError, UsageError


def base(bits: int = 4, name: str = "m") -> Quantize:
    source = Source(model=ModelRef(kind="local", name=name, revision="0" * 64))
    return Quantize(source=source, quantization=Quantization(bits=bits))  # type: ignore[arg-type]


def build(folder: Path) -> dict[str, Any]:
    (folder / "sub").mkdir()
    (folder / "weights").write_bytes(b"123")
    (folder / "sub" / "more").write_text("x")
    return {"loss": 0.5}


def test_made_once_then_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, made = store.make(base(), build)
    again, made_again = store.make(base(), lambda folder: pytest.fail("built twice"))
    assert made
    assert not made_again
    assert first.path == again.path
    assert first.metrics == {"loss": 0.5}
    assert first.step == base()
    assert set(first.manifest["files"]) == {"weights", "sub/more"}


def test_renamed_model_folder_finds_the_same_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made, _ = store.make(base(name="before"), build)
    assert store.get(base(name="after")).path == made.path  # type: ignore[union-attr]


def test_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def broken(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise PlrError("no")

    with pytest.raises(PlrError, match="no"):
        store.make(base(), broken)
    assert store.get(base()) is None
    assert list((tmp_path / "base").iterdir()) == []


def test_kill_in_the_middle_of_a_build_leaves_no_artifact_and_the_rerun_succeeds(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_store import base
        from plr.core.store import Store
        def build(folder):
            (folder / "weights").write_bytes(b"12")
            os.kill(os.getpid(), signal.SIGKILL)
        Store(Path(sys.argv[1])).make(base(), build)
        """
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), here], check=False)
    assert done.returncode == -9
    store = Store(tmp_path)
    assert store.get(base()) is None
    assert store.all() == []
    assert [p.name for p in store.garbage()] == [f".partial-{base().fingerprint[:12]}"]
    artifact, made = store.make(base(), build)
    assert made
    artifact.check()
    assert store.garbage() == []


def test_full_disk_is_a_resource_error_and_other_artifacts_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, _ = store.make(base(8), build)

    def full(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="is full") as caught:
        store.make(base(4), full)
    assert caught.value.exit_code == 4
    kept.check()
    assert store.get(base(4)) is None


def test_truly_full_filesystem(tmp_path: Path) -> None:
    small = Path("/dev/full")
    if not small.exists():
        pytest.skip("this system has no /dev/full")

    def full(folder: Path) -> dict[str, Any]:
        with small.open("wb") as stream:
            stream.write(b"x")
        return {}

    with pytest.raises(DiskFullError, match="is full"):
        Store(tmp_path).make(base(), full)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "weights").unlink(), "is missing"),
        (lambda p: (p / "weights").write_bytes(b"1234"), "has 4 bytes, 3 were written"),
        (lambda p: (p / MANIFEST).write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_found_on_use(tmp_path: Path, damage: Any, message: str) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make(base(), build)
    damage(artifact.path)
    with pytest.raises(IntegrityError, match=message):
        store.get(base())


def test_same_size_damage_is_found_by_check(tmp_path: Path) -> None:
    artifact, _ = Store(tmp_path).make(base(), build)
    (artifact.path / "weights").write_bytes(b"124")
    with pytest.raises(IntegrityError, match="was altered"):
        artifact.check()


def test_manifest_of_another_version_is_said_so(tmp_path: Path) -> None:
    artifact, _ = Store(tmp_path).make(base(), build)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    manifest["step"]["surprise"] = 1
    (artifact.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="no step this version"):
        _ = Store(tmp_path).find(None).step


def test_two_threads_build_once(tmp_path: Path) -> None:
    built: list[int] = []

    def slow(folder: Path) -> dict[str, Any]:
        built.append(1)
        return build(folder)

    threads = [threading.Thread(target=lambda: Store(tmp_path).make(base(), slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_find_by_path_name_prefix_and_latest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, _ = store.make(base(8), build)
    second, _ = store.make(base(4), build)
    os.utime(second.path / MANIFEST, ns=(2**62, 2**62))
    for ref in (str(first.path), first.path.name, first.fingerprint[:12]):
        assert store.find(ref).path == first.path
    assert store.find(None).path == second.path


def test_find_says_what_is_wrong(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="holds no adapter yet"):
        store.find(None, ("adapter",))
    artifact, _ = store.make(base(), build)
    with pytest.raises(UsageError, match="no artifact matches 'zzzz'"):
        store.find("zzzz")
    with pytest.raises(UsageError, match="is of kind base"):
        store.find(artifact.path.name, ("adapter",))
    with pytest.raises(PlrError, match="not in the store"):
        store.require(base(3))


def test_ambiguous_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for bits in (8, 4):
        store.make(base(bits), build)
    monkeypatch.setattr("plr.core.store._MIN_REF", 0)
    with pytest.raises(UsageError, match="is ambiguous: 2 artifacts match"):
        store.find("")
