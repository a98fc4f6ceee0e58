"""Names of the hub and the commits that they stand for, with a network and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import SHA, FakeHub, Repo
from hub_client import environment, point

from plr.hub import cached_sha, commit_sha, fetch, names
from plr.hub.names import write_note

FILES = {"README.md": b"# data\n", "train.bin": bytes(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({"org/data": Repo(FILES, revisions={"main": SHA, "v1": SHA})}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def test_what_is_written_beside_the_files_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "refs" / "main"
    write_note(file, "one")

    class Full(type(file)):  # type: ignore[misc]
        def write_text(self, *_: object, **__: object) -> int:
            super().write_text("o")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_note(Full(file), "two")
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [("main", "one")]


def test_offline_a_branch_is_found_by_the_name_it_was_asked_for_by(hub: FakeHub) -> None:
    hub.repos["org/data"].revisions = {"v1": "1" * 40, "main": SHA}
    for revision in (None, "v1"):
        sha = commit_sha("dataset", "org/data", revision, advice="")
        fetch("dataset", "org/data", sha, lambda _: ["README.md"], offline=False, advice="")
    assert cached_sha("dataset", "org/data") == SHA
    assert cached_sha("dataset", "org/data", "v1") == "1" * 40
    assert cached_sha("dataset", "org/data", "v2") is None


def test_the_name_is_found_though_another_process_fetched_the_files(hub: FakeHub, tmp_path: Path) -> None:
    """As the workers of a grid do; a name that was asked for once does not hold a branch back later."""
    hub.repos["org/data"].revisions = {"refs/pr/1": SHA}
    assert commit_sha("dataset", "org/data", "refs/pr/1", advice="") == SHA
    assert cached_sha("dataset", "org/data", "refs/pr/1") is None
    code = "from plr.hub import fetch; import sys; fetch('dataset', 'org/data', sys.argv[1], list, offline=False, advice='')"
    subprocess.run([sys.executable, "-c", code, SHA], env=environment(hub.endpoint, tmp_path), check=True)
    assert cached_sha("dataset", "org/data", "refs/pr/1") == SHA
    commit_sha("dataset", "org/data", "refs/pr/1", advice="")
    assert not list((tmp_path / "hub" / "datasets--org--data" / "plr" / "asked").iterdir()), "it is known already"
    ref = tmp_path / "hub" / "datasets--org--data" / "refs" / "refs" / "pr" / "1"
    ref.write_text("2" * 40)
    fetch("dataset", "org/data", SHA, list, offline=False, advice="")
    assert ref.read_text() == "2" * 40


def test_two_that_name_a_commit_at_once(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is second finds that what was asked for has been named and is gone."""
    commit_sha("dataset", "org/data", "v1", advice="")
    write = names.write_note

    def write_after_another(file: Path, text: str) -> None:
        write(file, text)
        asked.unlink()

    asked = tmp_path / "hub" / "datasets--org--data" / "plr" / "asked" / "v1"
    assert asked.read_text() == SHA
    monkeypatch.setattr(names, "write_note", write_after_another)
    names.name_snapshot("dataset", "org/data", SHA)
    assert (tmp_path / "hub" / "datasets--org--data" / "refs" / "v1").read_text() == SHA
