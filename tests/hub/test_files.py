"""Files of a repository at a commit, from a hub that serves well, fails, or sends other bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import SHA, FakeHub, Fault, Repo, What
from filelock import FileLock
from hub_client import environment, point, wait

from plr.errors import IntegrityError, ResourceError, UsageError
from plr.hub import Fetched, commit_sha, fetch, transfer
from plr.hub.transfer import Listed, matches

BIG = bytes(range(256)) * 1600  # 400 kB: some 64 kB of progress at every cut
FILES = {"README.md": b"# data\n", "train.bin": BIG, "more/notes.txt": b"small\n"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({"org/data": Repo(FILES)}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def get(*, offline: bool = False, paths: tuple[str, ...] = tuple(FILES)) -> Fetched:
    return fetch("dataset", "org/data", SHA, lambda _: paths, offline=offline, advice="ask Ann")


def whole(fetched: Fetched) -> bool:
    return all((fetched.folder / path).read_bytes() == FILES[path] for path in fetched.files)


def left_over(home: Path) -> list[Path]:
    return [
        path for path in (home / "hub").rglob("*") if path.name.endswith((".incomplete", ".tmp")) and path.is_file()
    ]


def test_every_file_has_the_bytes_of_the_listing_and_their_sha256(hub: FakeHub) -> None:
    found = get()
    assert whole(found)
    assert found.files == {path: hashlib.sha256(body).hexdigest() for path, body in FILES.items()}
    assert all(f"/{SHA}" in one.path for one in hub.asked if "org/data" in one.path)


def test_a_second_run_asks_nothing_online_or_offline(hub: FakeHub) -> None:
    first, count = get(), len(hub.asked)
    assert get() == get(offline=True) == first
    assert len(hub.asked) == count


def test_a_file_is_read_again_to_be_compared_only_when_it_has_changed(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, read = get(), list[str]()
    monkeypatch.setattr("plr.hub.files.matches", lambda file, listed: read.append(file.name) or matches(file, listed))
    get()
    assert read == []
    os.utime(found.folder / "train.bin", ns=(1, 1))
    get()
    assert read == ["train.bin"]


def test_offline_without_the_files_asks_nothing(hub: FakeHub) -> None:
    with pytest.raises(
        UsageError, match=r"plr is offline, and org/data at 0123456789ab from the hub is not in the cache"
    ) as e:
        get(offline=True)
    assert e.value.hint == "ask Ann"
    get(paths=("README.md",))
    count = len(hub.asked)
    with pytest.raises(UsageError, match=r"plr is offline, and train.bin of org/data from the hub is not in the cache"):
        get(offline=True)
    assert len(hub.asked) == count


@pytest.mark.parametrize("what", ["cut", "reset", "stop", "stall", "long"])
def test_one_failure_is_survived_and_the_rest_is_asked_for(hub: FakeHub, what: str, tmp_path: Path) -> None:
    hub.faults.append(Fault(what, times=1))  # type: ignore[arg-type]
    assert whole(get())
    ranges = [one.range for one in hub.downloads() if "/content/" in one.path]
    assert ranges[0] is None
    if what in ("cut", "stall"):
        assert ranges == [None, f"bytes={len(BIG) // 2}-"]
    if what == "long":
        assert ranges == [None, f"bytes={len(BIG)}-"]
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_bytes_now_and_then_are_given_up_and_the_rest_is_asked_for(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(paths=("README.md",))
    hub.faults.append(Fault("dribble", times=1))
    wait(monkeypatch, window=0.2)
    assert whole(get(paths=("train.bin",)))
    assert [one.range is None for one in hub.downloads() if "/content/" in one.path][:2] == [True, False]


@pytest.mark.parametrize("what", ["silent", "stall", pytest.param("dribble", marks=pytest.mark.slow)])
def test_silence_and_slowness_are_what_the_clock_says(
    hub: FakeHub, what: What, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(paths=("README.md",))
    hub.faults.append(Fault(what))
    wait(monkeypatch, silence=0.2, window=0.2)
    with pytest.raises(UsageError, match=r"'org/data' cannot be had from the hub: .*; 3 tries in") as e:
        get()
    assert "ask Ann" in str(e.value.hint)
    assert not list((tmp_path / "hub").rglob("train.bin"))
    hub.faults.clear()
    wait(monkeypatch)
    assert whole(get())
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("what", ["cut", "stop", "stall", "silent", pytest.param("reset", marks=pytest.mark.slow)])
def test_what_always_fails_ends_soon_with_what_to_do_and_nothing_half_written(
    hub: FakeHub, what: str, tmp_path: Path
) -> None:
    hub.faults.append(Fault(what))  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"'org/data' cannot be had from the hub: .* tries in|the hub cannot be reached"
    ) as e:
        get()
    assert len(hub.downloads()) <= 15  # three tries for each 64 kB of progress
    assert "ask Ann" in str(e.value.hint)
    assert not list((tmp_path / "hub").rglob("train.bin"))
    with pytest.raises(UsageError, match="is not in the cache"):
        get(offline=True, paths=("train.bin",))
    hub.faults.clear()
    before = len(hub.downloads())
    assert whole(get())
    if what == "cut":  # what came is gone on with
        assert all(one.range for one in hub.downloads()[before:] if "/content/" in one.path)
    assert left_over(tmp_path) == []


def test_a_part_that_is_not_of_the_file_is_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    etag = hashlib.sha256(BIG).hexdigest()
    part = tmp_path / "hub" / "datasets--org--data" / "plr" / "parts" / etag
    part.parent.mkdir(parents=True)
    for body in (b"x" * 100, b"x" * len(BIG), b"x" * (len(BIG) + 1), BIG[:1000], BIG):
        part.write_bytes(body)
        assert whole(get(paths=("train.bin",)))
        assert left_over(tmp_path) == []
        (tmp_path / "hub" / "datasets--org--data" / "blobs" / etag).unlink()


def test_a_server_without_ranges_sends_the_whole_once_more(hub: FakeHub, tmp_path: Path) -> None:
    """Behind a part of an earlier run, and in the middle of a file."""
    hub.ranges = False
    part = tmp_path / "hub" / "datasets--org--data" / "plr" / "parts" / hashlib.sha256(BIG).hexdigest()
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG[:1000])
    hub.faults.append(Fault("cut", times=1))
    assert whole(get())
    assert len([one for one in hub.downloads() if "/content/" in one.path]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_whatever_fails_a_few_times_the_file_is_whole_in_the_end(hub: FakeHub, seed: int) -> None:
    draw = random.Random(seed)
    wrong: list[What] = draw.choices(["wrong", "short", "unframed"], k=draw.randint(0, 2))
    broken: list[What] = draw.choices(["cut", "reset", "stop", "stall", "long", "status"], k=draw.randint(0, 2))
    hub.faults = [Fault(what, times=1) for what in draw.sample(wrong + broken, len(wrong + broken))]
    hub.ranges = draw.random() < 0.8
    assert whole(get())


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("wrong", "/content/"),
        ("wrong", "notes.txt"),
        ("short", "notes.txt"),
        ("unframed", "/content/"),
        ("page", "/content/"),
    ],
)
def test_other_bytes_are_fetched_anew_and_then_refused(hub: FakeHub, what: str, where: str, tmp_path: Path) -> None:
    """``train.bin`` is known by its sha256, ``notes.txt`` by the sha1 of its git blob."""
    hub.faults.append(Fault(what, where, times=1))  # type: ignore[arg-type]
    assert whole(get())
    (tmp_path / "hub").rename(tmp_path / "first")
    hub.faults.append(Fault(what, where))  # type: ignore[arg-type]
    with pytest.raises(
        IntegrityError, match=r"does not send (train.bin|more/notes.txt) of org/data as its listing promises"
    ) as e:
        get()
    assert "ask Ann" in str(e.value.hint)
    blobs = [path.read_bytes() for path in (tmp_path / "hub").rglob("blobs/*")]
    assert blobs
    assert all(body in FILES.values() for body in blobs)
    hub.faults.clear()
    assert whole(get())


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(hub: FakeHub) -> None:
    found = get()
    (found.folder / "train.bin").resolve().write_bytes(BIG[:-1] + b"x")
    with pytest.raises(UsageError, match=r"train.bin of org/data from the hub is damaged in the cache"):
        get(offline=True)
    assert whole(get())


def test_a_hub_that_is_busy_is_waited_for(hub: FakeHub) -> None:
    hub.faults += [Fault("status", times=1), Fault("status", times=1, status=429, headers={"Retry-After": "0"})]
    hub.faults += [Fault("status", where="/tree/", times=2, status=502)]
    assert whole(get())


def test_a_mirror_in_a_folder_of_its_host(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.prefix = "/hugging/face"
    point(monkeypatch, hub.endpoint + hub.prefix, tmp_path)
    assert commit_sha("dataset", "org/data", advice="") == SHA
    hub.faults.append(Fault("cut", times=1))
    assert whole(get())


def test_a_token_goes_to_the_hub_and_not_to_where_it_points(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults.append(Fault("cut", times=1))
    assert whole(get())
    tokens = {one.path.split("/")[1]: one.token for one in hub.asked}
    assert tokens["api"] == tokens["datasets"] == "Bearer hf_secret"
    assert tokens["content"] is None


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plr.hub.files.transfer", full)
    with pytest.raises(ResourceError, match=r"the disk is full: 'org/data' from the hub does not fit into") as e:
        get()
    assert e.value.exit_code == 4


def test_a_disk_without_room_is_noticed_before_anything_is_fetched(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000)))
    with pytest.raises(
        ResourceError, match=r"train.bin of org/data from the hub takes 409,600 bytes more, and .* 1,000 left"
    ):
        get()
    assert not [one for one in hub.downloads() if "content" in one.path]


def test_what_hf_download_fetched_is_compared_and_used(hub: FakeHub, tmp_path: Path) -> None:
    """Its listing lies beside the snapshot: format 1 of huggingface_hub 2.4."""
    from huggingface_hub import snapshot_download

    snapshot_download("org/data", repo_type="dataset", revision=SHA)
    count = len(hub.asked)
    assert whole(get(offline=True))
    assert len(hub.asked) == count


def test_whoever_waits_for_another_says_so(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = FileLock(tmp_path / "hub" / "datasets--org--data" / "plr" / "lock")
    get(paths=("README.md",))
    monkeypatch.setattr(transfer, "LOG_WAITS_OVER", 0.05)
    with ThreadPoolExecutor(1) as pool:
        with lock:
            other = pool.submit(get)
            while not caplog.messages and not other.done():
                threading.Event().wait(0.01)
        assert whole(other.result())
    assert caplog.messages == ["another process fetches files of org/data; waiting until it has them"]


def test_files_without_a_list_of_all_are_not_taken_for_the_whole(hub: FakeHub, tmp_path: Path) -> None:
    """A hub library before 2.4 leaves no listing, a later one lets its owner alone read it."""
    from huggingface_hub import snapshot_download

    snapshot_download("org/data", repo_type="dataset", revision=SHA)
    tree = tmp_path / "hub" / "datasets--org--data" / "trees" / f"{SHA}.json"
    for prepare, hint in ((lambda: tree.write_text("{"), f"let all read {tree}; or ask Ann"), (tree.unlink, "ask Ann")):
        prepare()
        with pytest.raises(
            UsageError, match="the cache has files of org/data at 0123456789ab, but no list of all"
        ) as e:
            get(offline=True)
        assert e.value.hint == hint
    count = len(hub.downloads())
    assert whole(get())
    assert len(hub.downloads()) == count


def test_a_listing_that_cannot_be_read_is_asked_for_again(hub: FakeHub, tmp_path: Path) -> None:
    get()
    record = next((tmp_path / "hub").rglob(f"plr/{SHA}.json"))
    assert Listed(*json.loads(record.read_text())["listed"]["train.bin"]).sha256 == hashlib.sha256(BIG).hexdigest()
    record.write_text("{")
    assert whole(get())


@pytest.mark.parametrize(
    "path", ["../escape.json", "/tmp/escape.json", "a/../../escape.json", "a\\..\\..\\escape.json"]
)
def test_a_listing_cannot_name_files_outside_of_itself(hub: FakeHub, tmp_path: Path, path: str) -> None:
    hub.repos["org/data"].files = {path: b"{}"}
    with pytest.raises(UsageError, match="org/data on the hub lists what cannot be a file of it"):
        get(paths=(path,))
    assert not list(tmp_path.rglob("escape.json"))


PROGRAM = """
import sys
from plr.hub import fetch
found = fetch("dataset", "org/data", sys.argv[1], lambda listed: listed, offline=False, advice="")
print(found.files["train.bin"])
"""


@pytest.mark.slow
def test_two_processes_at_once_both_have_whole_files(tmp_path: Path) -> None:
    with FakeHub({"org/data": Repo(FILES)}).running() as hub:
        known = environment(hub.endpoint, tmp_path)
        command = [sys.executable, "-c", PROGRAM, SHA]
        running = [subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outs = [process.communicate(timeout=600)[0].strip() for process in running]
    assert outs == [hashlib.sha256(BIG).hexdigest()] * 2
    assert left_over(tmp_path) == []
