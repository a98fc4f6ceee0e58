"""The store: commit last, share by content, say what is broken."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from plr.core.collect import Leftovers
from plr.core.fingerprint import file_sha256
from plr.core.manifest import write_manifest
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


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest that is another one, and whole."""
    write_manifest(
        folder / MANIFEST, {key: value for key, value in manifest.items() if key not in ("format", "sha256")}
    )


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
    assert [p.name for p in Leftovers.find(tmp_path).folders] == [f".partial-{base().fingerprint[:12]}"]
    artifact, made = store.make(base(), build)
    assert made
    artifact.check()
    assert Leftovers.find(tmp_path).folders == []


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
    reseal(artifact.path, manifest)
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
    os.utime(first.path / MANIFEST, ns=(2**62, 2**62))  # a clock of the file system is no date of a commit
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


def test_a_beginning_of_any_length_that_one_artifact_has(tmp_path: Path) -> None:
    store = Store(tmp_path)
    steps = [base(bits, name) for bits in (8, 4, 3, 2) for name in ("m", "n")]
    steps += [base(4, "m").replaced(quantization=Quantization(bits=4, group_size=size)) for size in (8, 16, 32, 64)]
    made = [store.make(step, build)[0] for step in steps]
    hashes = {artifact.fingerprint for artifact in made}
    for artifact in made:
        for length in (1, 2, 3, 5, 11, 12, 13, 64):
            ref = artifact.fingerprint[:length]
            several = sum(one.startswith(ref) for one in hashes) > 1
            if several:
                with pytest.raises(UsageError, match=f"{ref}' is ambiguous") as caught:
                    store.find(ref)
                assert artifact.fingerprint[:12] in str(caught.value)
            else:
                assert store.find(ref).fingerprint == artifact.fingerprint
    with pytest.raises(UsageError, match="no artifact matches"):
        store.find(made[0].fingerprint[:20] + "x")
    with pytest.raises(UsageError, match="no artifact matches ''"):
        store.find("")  # a variable that is not set


def test_a_beginning_of_a_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    eight, _ = store.make(base(8), build)
    store.make(base(4), build)
    assert store.find("m-gptq-8").path == eight.path
    with pytest.raises(UsageError, match=rf"ambiguous: 2 artifacts(.|\n)*{eight.fingerprint[:12]} \(base\)"):
        store.find("m-gptq")


def test_a_name_that_begins_with_a_dot_is_no_artifact(tmp_path: Path) -> None:
    """Killed between the manifest and the rename, a folder is whole, and was never committed."""
    store = Store(tmp_path)
    artifact, _ = store.make(base(), build)
    hidden = artifact.path.with_name(f".partial-{base().fingerprint[:12]}")
    artifact.path.rename(hidden)
    assert store.get(base()) is None
    assert store.all() == []
    for ref in (str(hidden), hidden.name, base().fingerprint[:8]):
        with pytest.raises(UsageError, match=r"is no artifact|no artifact matches"):
            store.find(ref)
    assert store.make(base(), build)[1]
    assert not hidden.exists()


def test_a_folder_without_a_manifest_is_moved_aside_before_the_build_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make(base(), build)
    (artifact.path / MANIFEST).unlink()
    again, made = store.make(base(), build)
    assert made
    again.check()
    [aside] = artifact.path.parent.glob(".broken-*")
    assert (aside / "weights").read_bytes() == b"123"
    assert aside.name in capsys.readouterr().err
    assert Leftovers.find(tmp_path).folders == [aside]


def test_the_manifest_of_another_step_is_not_taken_for_this_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine, _ = store.make(base(4), build)
    other, _ = store.make(base(3), build)
    mine_text = (mine.path / MANIFEST).read_text()
    (mine.path / MANIFEST).write_text((other.path / MANIFEST).read_text())
    for look in (lambda: store.get(base(4)), lambda: store.find(str(mine.path)).record, lambda: store.find(None)):
        with pytest.raises(IntegrityError, match=f"{other.fingerprint[:12]}.*{base(4).fingerprint[:12]}"):
            look()
    # The same with the fingerprint that the folder's name asks for: then it is not that of the step.
    manifest = json.loads(mine_text)
    manifest["step"] = json.loads((other.path / MANIFEST).read_text())["step"]
    reseal(mine.path, manifest)
    with pytest.raises(IntegrityError, match=f"that of its step is '{base(3).fingerprint}"):
        store.get(base(4))


def test_a_file_is_hashed_before_it_is_used_and_not_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make(base(), build)
    store.require(base())
    (artifact.path / "weights").write_bytes(b"124")
    assert store.get(base()) is not None
    with pytest.raises(IntegrityError, match="weights was altered"):
        store.require(base())


def test_a_commit_and_its_use_hash_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    def slow(folder: Path) -> dict[str, Any]:
        metrics = build(folder)
        time.sleep(0.03)
        return metrics

    monkeypatch.setattr("plr.core.fingerprint.file_sha256", counted)
    monkeypatch.setattr("pathlib.Path.chmod", lambda *_: None)  # it would set the clock of the inode
    store = Store(tmp_path)
    store.make(base(), slow)
    store.require(base())
    assert sorted(hashed) == ["more", "weights"]


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "model-00002-of-00002.safetensors", "modeling.py", "sub/vocab.txt"]
)
def test_a_file_that_is_not_on_record_is_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make(base(), build)
    (artifact.path / "README.md").write_text("a note")
    store.require(base())
    (artifact.path / name).write_text("x")
    with pytest.raises(IntegrityError, match=f"{name} is not on record"):
        store.get(base())


def test_latest_is_the_date_of_the_commit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, _ = store.make(base(8), build)
    second, _ = store.make(base(4), build)
    manifest = json.loads((first.path / MANIFEST).read_text())
    manifest["provenance"]["date"] = "2100-01-01T01:00:00+01:00"
    reseal(first.path, manifest)
    assert [artifact.path for artifact in Store(tmp_path).all()] == [second.path, first.path]


def test_a_copy_elsewhere_stands_for_the_same_files_here_and_nothing_else_does(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    mine, _ = store.make(base(), build)
    copy = tmp_path / "copy"
    shutil.copytree(mine.path, copy)
    assert store.find(str(copy)).path == mine.path
    with pytest.raises(UsageError, match=r"lies outside of the store .* holds none of its step"):
        other.find(str(copy))
    assert other.find(str(copy), outside=True).step == base()
    (copy / "weights").write_bytes(b"124")
    with pytest.raises(IntegrityError, match="copy/weights was altered"):
        store.find(str(copy))

    def otherwise(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_bytes(b"other")
        return {}

    theirs, _ = other.make(base(), otherwise)
    with pytest.raises(UsageError, match="holds other files of the same step"):
        store.find(str(theirs.path))


def test_a_number_that_is_not_finite_is_not_committed(tmp_path: Path) -> None:
    def diverged(folder: Path) -> dict[str, Any]:
        return {"curve": [{"loss": 1.0}, {"loss": float("nan")}]}

    with pytest.raises(PlrError, match=r"metrics\.curve\[1\]\.loss is nan"):
        Store(tmp_path).make(base(), diverged)
    assert Store(tmp_path).all() == []


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    def private(folder: Path) -> dict[str, Any]:
        metrics = build(folder)
        (folder / "weights").chmod(0o600)  # as safetensors does
        return metrics

    before = os.umask(0o027)
    try:
        Store(tmp_path / "home").make(base(), private)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"weights", "more", MANIFEST, f"{base().fingerprint[:12]}.lock"}
    assert {stat.filemode(path.stat().st_mode) for path in files} == {"-rw-r-----"}


def test_work_left_by_a_kill_after_the_commit_is_removed_when_the_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make(base(), build)
    store.work(base()).mkdir(parents=True)
    store.make(base(), build)
    assert not store.work(base()).exists()


def test_a_store_that_cannot_be_written_is_read_and_says_so_to_who_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.make(base(4), build)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("plr.core.locks.FileLock.acquire", read_only)
    assert not store.make(base(4), build)[1]
    assert store.find(None).step == base(4)
    with pytest.raises(PlrError, match="cannot be written: Read-only file system"):
        store.make(base(3), build)


def test_what_another_process_commits_is_found(tmp_path: Path) -> None:
    """Also within one tick of the clock of the folder, and under another label."""
    ours, theirs = Store(tmp_path), Store(tmp_path)
    for bits in (8, 4, 3, 2):
        assert ours.get(base(bits, name="other")) is None
        theirs.make(base(bits), build)
        assert ours.get(base(bits, name="other")) is not None
