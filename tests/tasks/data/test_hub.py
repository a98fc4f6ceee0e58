"""Data sets by name, through datasets itself: on disk, on a hub of our own on localhost, and on a hub that is not there."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import SHA, FakeHub, Fault, Repo
from hub_client import point

from plr.errors import DataError, IntegrityError, ResourceError, UsageError
from plr.tasks import HubData, TaskData, tasks
from plr.tasks.data import rows as data
from plr.tasks.data.hub import HubSource
from plr.tasks.data.rows import data_record, load_split, resolve_task
from plr.tasks.library.gsm8k import Gsm8k
from plr.tasks.library.sql_create_context import SqlCreateContext

datasets = pytest.importorskip("datasets")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies in a hub repository, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split, count in (("train", 50), ("test", 10)):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_splits_come_from_load_dataset_and_validation_from_train(dataset: Path) -> None:
    class OnDisk(Gsm8k):
        hub = HubData(str(dataset), splits={"train": "train", "test": "test"})

    task = OnDisk()
    loaded = {split: task.load(split) for split in ("train", "validation", "test")}
    assert {split: part.report.kept for split, part in loaded.items()} == {"train": 45, "validation": 5, "test": 10}
    assert loaded["test"].examples[3].id == "test-3"
    assert loaded["test"].examples[3].prompt == "Question: test 3?\nAnswer:"


def test_the_only_split_of_a_data_set_is_divided(dataset: Path) -> None:
    rows = [{"question": f"q{i}?", "context": f"CREATE TABLE t{i} (a INT)", "answer": "SELECT 1"} for i in range(50)]
    (dataset / "test.jsonl").unlink()
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    class OnDisk(SqlCreateContext):
        hub = HubData(str(dataset), splits={"all": "train"})

    task = OnDisk()
    ids = {split: {e.id for e in task.load(split).examples} for split in ("train", "validation", "test")}
    assert {split: len(names) for split, names in ids.items()} == {"train": 40, "validation": 5, "test": 5}
    assert set.union(*ids.values()) == {f"all-{i}" for i in range(50)}


def test_a_split_or_configuration_that_the_data_set_lacks(dataset: Path) -> None:
    class NoSplit(Gsm8k):
        hub = HubData(str(dataset), splits={"test": "nope"})

    class NoConfig(Gsm8k):
        hub = HubData(str(dataset), config="other", splits={"test": "test"})

    with pytest.raises(DataError, match=r'the nope split of .* cannot be loaded: Unknown split "nope"'):
        NoSplit().load("test")
    with pytest.raises(DataError, match="cannot be loaded: BuilderConfig 'other' not found"):
        NoConfig().load("test")


def test_a_row_of_a_data_set_is_named_by_its_number(dataset: Path) -> None:
    (dataset / "test.jsonl").write_text(
        '{"question": "q", "answer": "#### 1"}\n{"question": "q", "answer": ""}\n', encoding="utf-8"
    )

    class OnDisk(Gsm8k):
        hub = HubData(str(dataset), splits={"train": "train", "test": "test"})

    with pytest.raises(DataError, match="test row 1: the field 'answer' is empty"):
        OnDisk().load("test")


@pytest.mark.parametrize(
    ("name", "revision", "fetch"),
    [
        ("gsm8k", None, "hf download --repo-type dataset openai/gsm8k;"),
        ("sql_create_context", "abc123", "hf download --repo-type dataset b-mc2/sql-create-context --revision abc123;"),
    ],
)
def test_offline_names_the_command_and_the_alternative(
    name: str, revision: str | None, fetch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be loaded") as raised:
        tasks.get(name).load("test", TaskData(revision=revision))
    assert fetch in str(raised.value)
    assert f"--data FOLDER with rows of {name}" in str(raised.value)


def rows_of(name: str, count: int) -> list[dict[str, str]]:
    return [{"question": f"{name} {index}? " + "x" * 400, "answer": f"#### {index}"} for index in range(count)]


def parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none")
    return buffer.getvalue()


def lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
configs:
- config_name: other
  data_files:
  - split: test
    path: other/test-*
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
# Grade school
"""
FILES = {
    "README.md": CARD,
    "main/train-00000-of-00002.parquet": parquet(rows_of("a", 30)),
    "main/train-00001-of-00002.parquet": parquet(rows_of("b", 20)),
    "main/test-00000-of-00001.parquet": parquet(rows_of("t", 10)),
    "other/test-00000-of-00001.parquet": parquet(rows_of("o", 5)),
    "notes.csv": b"not,read\n",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repos = {"openai/gsm8k": Repo(FILES), "org/plain": Repo({"train.jsonl": lines(rows_of("p", 20))})}
    repos["org/table"] = Repo({"test.csv": b"question,answer\nq,#### 1\n"})
    repos["org/script"] = Repo({"script.py": b"raise SystemExit", "README.md": b"# old\n"})
    repos["org/empty"] = Repo({"README.md": b"# nothing yet\n", "model.onnx": b"x"})
    repos["org/norows"] = Repo({"test.jsonl": b""})
    repos["org/broken"] = Repo({"test.jsonl": b'{"question": "q", \n'})
    with FakeHub(repos).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        for cached in (data.load_split, data._head):
            cached.cache_clear()
        yield hub
    for cached in (data.load_split, data._head):
        cached.cache_clear()


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*where: object) -> None:
        raise AssertionError(f"a network call: {where}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def read(name: str, split: str = "test", *, config: str | None = None, revision: str | None = SHA) -> list[str]:
    splits = {"train": "train", "test": "test"}
    rows = HubSource("gsm8k", HubData(name, config, splits=splits), revision).read(split)
    return [row.values["question"].split("?")[0] for row in rows]


def test_parquet_json_lines_and_csv_give_their_rows(hub: FakeHub) -> None:
    assert read("openai/gsm8k", config="main") == [f"t {index}" for index in range(10)]
    assert read("openai/gsm8k", "train", config="main") == [f"a {i}" for i in range(30)] + [f"b {i}" for i in range(20)]
    assert read("org/plain", "train") == [f"p {index}" for index in range(20)]
    assert read("org/table") == ["q"]


def test_a_folder_of_a_commit_without_a_card(hub: FakeHub) -> None:
    """As the rows of ``csebuetnlp/xlsum`` lie at its branch of parquet files: a folder a language, in it one a split."""
    files = {
        f"{language}/{split}/0000.parquet": parquet(
            [{"text": f"{language} {split} {i}", "summary": "s"} for i in range(3)]
        )
        for language in ("english", "japanese")
        for split in ("train", "validation", "test")
    }
    hub.repos["csebuetnlp/xlsum"] = Repo(files, revisions={"main": "a" * 40, "refs/convert/parquet": SHA})
    spec = resolve_task("xlsum_ja")
    assert spec.revision == SHA
    for split in ("train", "validation", "test"):
        found = load_split(spec, split)
        assert [example.row["text"] for example in found.examples] == [f"japanese {split} {i}" for i in range(3)]
    assert all("japanese" in one.path or "/api/" in one.path or one.path.startswith("/content/") for one in hub.asked)
    assert set(data_record(spec, "test")["files"]) == {path for path in files if path.startswith("japanese/")}


def test_one_json_file_is_the_only_split_and_is_divided(hub: FakeHub) -> None:
    """As ``b-mc2/sql-create-context`` lies on the hub: a card that says nothing of files, and one JSON list."""
    rows = [{"question": f"q{i}?", "context": f"CREATE TABLE t{i} (a INT)", "answer": "SELECT 1"} for i in range(50)]
    files = {"README.md": b"---\nlicense: cc-by-4.0\n---\n", "sql_create_context_v4.json": json.dumps(rows).encode()}
    hub.repos["b-mc2/sql-create-context"] = Repo(files)
    spec = resolve_task("sql_create_context")
    kept = {split: len(load_split(spec, split).examples) for split in ("train", "validation", "test")}
    assert kept == {"train": 40, "validation": 5, "test": 5}


def test_what_the_card_says_of_columns_holds(hub: FakeHub) -> None:
    """As ``nyu-mll/glue``: labels are numbers of named classes, and a column is text although it looks like a number."""
    features = (
        "  - name: sentence\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    )
    features += "          '0': unacceptable\n          '1': acceptable\n  - name: idx\n    dtype: string\n"
    card = f"---\ndataset_info:\n- config_name: cola\n  features:\n{features}configs:\n- config_name: cola\n  data_files:\n"
    card += "  - split: validation\n    path: cola/dev.jsonl\n---\n"
    rows = [{"sentence": "Fine.", "label": 1, "idx": 7}]
    hub.repos["nyu-mll/glue"] = Repo({"README.md": card.encode(), "cola/dev.jsonl": lines(rows)})
    source = HubSource("glue_cola", HubData("nyu-mll/glue", "cola", splits={"test": "validation"}), None)
    assert [row.values for row in source.read("test")] == [{"sentence": "Fine.", "label": 1, "idx": "7"}]


def test_the_files_of_one_configuration_are_fetched_and_no_others(hub: FakeHub) -> None:
    read("openai/gsm8k", config="main")
    asked = [one.path for one in hub.asked if "/resolve/" in one.path]
    assert {path.split(SHA + "/")[1] for path in asked} == {path for path in FILES if path[:5] in ("READM", "main/")}


def test_the_task_is_pinned_fetched_once_and_then_needs_no_network(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolve_task("gsm8k")
    assert spec.revision == SHA
    first = {split: load_split(spec, split) for split in ("train", "validation", "test")}
    assert {split: found.report.kept for split, found in first.items()} == {"train": 45, "validation": 5, "test": 10}
    load_split.cache_clear()
    count = len(hub.asked)
    no_network(monkeypatch)
    assert resolve_task("gsm8k", offline=True) == spec
    assert {split: load_split(spec, split) for split in first} == first
    assert len(hub.asked) == count


def test_checksums_of_bytes_and_rows_can_be_computed_by_anyone(hub: FakeHub) -> None:
    record = data_record(resolve_task("gsm8k"), "test")
    assert record["revision"] == SHA
    assert record["files"] == {
        path: hashlib.sha256(body).hexdigest() for path, body in FILES.items() if path[:5] in ("READM", "main/")
    }
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows_of("t", 10))
    assert record["rows_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (record["rows"], record["source"]) == (10, f"openai/gsm8k (main)@{SHA}")
    json.dumps(record)


def test_a_branch_is_pinned_to_its_commit_and_a_commit_stays(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["openai/gsm8k"].revisions = {"main": SHA, "fixed": "f" * 40}
    task = tasks.get("gsm8k")
    assert task.hub is not None
    for revision, expected, calls in (("fixed", "f" * 40, 1), ("e" * 40, "e" * 40, 0)):
        monkeypatch.setattr(type(task), "hub", HubData(task.hub.id, "main", revision))
        before = len(hub.asked)
        assert resolve_task("gsm8k").revision == expected
        assert len([one for one in hub.asked[before:] if "openai" in one.path]) == calls


def test_a_hub_that_is_down_and_data_that_are_there(hub: FakeHub) -> None:
    hub.faults.append(Fault("status", "/api/"))
    for there in (False, True):
        with pytest.raises(UsageError, match="'openai/gsm8k' cannot be had from the hub: it answers 500") as e:
            resolve_task("gsm8k")
        assert ("use --offline, as it was fetched before" in str(e.value.hint)) == there
        assert "give --data FOLDER with rows of gsm8k" in str(e.value.hint)
        hub.faults.clear()
        load_split(resolve_task("gsm8k"), "test")
        data._head.cache_clear()
        hub.faults.append(Fault("status", "/api/"))
    assert resolve_task("gsm8k", offline=True).revision == SHA


def test_another_commit_in_the_cache_is_not_taken_for_the_pinned_one(hub: FakeHub) -> None:
    """What ``load_dataset`` by name does when the hub fails: it falls back to whatever its cache holds of that name."""
    read("openai/gsm8k", config="main")
    hub.faults.append(Fault("status", "/api/"))
    with pytest.raises(DataError, match="'openai/gsm8k' cannot be had from the hub: it answers 500"):
        read("openai/gsm8k", config="main", revision="a" * 40)


def test_half_a_configuration_is_never_read(hub: FakeHub) -> None:
    """The second shard fails for good: the first is in the cache, and no split is given, not even later and offline."""
    sha256 = hashlib.sha256(FILES["main/train-00001-of-00002.parquet"]).hexdigest()
    hub.faults.append(Fault("stop", sha256))
    with pytest.raises(
        DataError, match=r"the train split of .* cannot be loaded: 'openai/gsm8k' cannot be had from the hub"
    ):
        read("openai/gsm8k", "train", config="main")
    with pytest.raises(DataError, match=r"plr is offline, and main/train-00001-of-00002.parquet of openai/gsm8k"):
        resolve_task("gsm8k", offline=True)
    hub.faults.clear()
    assert len(read("openai/gsm8k", "train", config="main")) == 50


def test_other_rows_than_the_listing_promises_are_refused(hub: FakeHub) -> None:
    """JSON lines parse after a changed byte: without a checksum nobody would notice."""
    body = hub.repos["org/plain"].files["train.jsonl"]
    promised = Repo.oid(hub.repos["org/plain"], "train.jsonl")
    hub.repos["org/plain"].files = {"train.jsonl": body.replace(b"#### 7", b"#### 8")}
    hub.repos["org/plain"].oid = lambda path: promised  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match=r"does not send train.jsonl of org/plain as its listing promises"):
        read("org/plain", "train")


@pytest.mark.parametrize(
    ("name", "config", "split", "revision", "message"),
    [
        ("org/none", None, "test", None, "the hub knows no dataset 'org/none'"),
        ("openai/gsm8k", "main", "test", "v9", "has no revision 'v9'"),
        ("openai/gsm8k", "mian", "test", SHA, r"BuilderConfig 'mian' not found. Available: \['other', 'main'\]"),
        ("openai/gsm8k", "other", "train", SHA, 'Unknown split "train". Should be one of'),
        ("org/script", None, "test", SHA, r"org/script on the hub is a script \(script.py\)"),
        ("org/empty", None, "test", SHA, r"org/empty on the hub has no file of rows .*"),
        ("org/broken", None, "test", SHA, "the test split of org/broken.* cannot be loaded: JSON parse error"),
        ("org/norows", None, "test", SHA, "the test split of org/norows.* cannot be loaded: its files hold no rows"),
        ("a/b/c", None, "test", None, "'a/b/c' cannot be the name of a dataset"),
    ],
)
def test_what_is_missing_is_said(
    hub: FakeHub, name: str, config: str | None, split: str, revision: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read(name, split, config=config, revision=revision)
    assert raised.value.hint or raised.value.expected


@pytest.mark.parametrize("gate", [401, 403])
def test_a_licence_that_is_not_accepted(hub: FakeHub, gate: int) -> None:
    hub.repos["openai/gsm8k"].gate = gate
    with pytest.raises(DataError, match="openai/gsm8k on the hub asks for its licence to be accepted") as raised:
        read("openai/gsm8k", config="main")
    assert f"accept it at {hub.endpoint}/datasets/openai/gsm8k" in str(raised.value.hint)


NO_ROOM = OSError("Not enough disk space. Needed: 3 GB (download: 1 GB, generated: 2 GB")


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full: org/table does not fit into the cache of datasets"),
        (OSError(122, "Disk quota exceeded", "/cache/x"), "the disk is full: org/table does not fit"),
        (NO_ROOM, "the disk is full: org/table does not fit"),
        (PermissionError(13, "Permission denied", "/cache/x"), "/cache/x: Permission denied"),
    ],
)
def test_a_disk_that_cannot_take_the_rows(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, cause: OSError, message: str, wrapped: bool
) -> None:
    """``datasets`` says that an error occurred, and has the reason behind it."""

    def fail(*_: object, **__: object) -> None:
        if wrapped:
            raise datasets.exceptions.DatasetGenerationError("An error occurred while generating") from cause
        raise cause

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ResourceError, match=message) as e:
        read("org/table")
    assert "HF_DATASETS_CACHE" in str(e.value.hint)


def test_a_cache_that_was_moved_or_copied_is_read_where_it_is(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is filled where there is a network, and copied to where there is none."""
    read("openai/gsm8k", config="main")
    (tmp_path / "hub").rename(tmp_path / "elsewhere")
    point(monkeypatch, "http://127.0.0.1:9", tmp_path / "there")
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "there" / "hub")
    no_network(monkeypatch)
    assert read("openai/gsm8k", config="main") == [f"t {index}" for index in range(10)]


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "table").mkdir(parents=True)
    (tmp_path / "org" / "table" / "test.csv").write_text("question,answer\nmine,#### 1\n")
    assert read("org/table") == ["q"]


def test_what_hf_download_fetched_is_read_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the advice in the message says."""
    from huggingface_hub import snapshot_download

    with pytest.raises(DataError, match="plr is offline") as raised:
        resolve_task("gsm8k", offline=True)
    assert "hf download --repo-type dataset openai/gsm8k;" in str(raised.value.hint)
    snapshot_download("openai/gsm8k", repo_type="dataset")
    no_network(monkeypatch)
    assert len(load_split(resolve_task("gsm8k", offline=True), "test").examples) == 10


def test_a_cache_for_reading_alone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a site keeps for all: filled by ``hf download``, not to be written to."""
    from huggingface_hub import snapshot_download

    snapshot_download("openai/gsm8k", repo_type="dataset")
    mkdir = Path.mkdir

    def refuse(self: Path, *rest: object, **more: object) -> None:
        if str(self).startswith(f"{tmp_path}/hub/datasets--openai--gsm8k/plr"):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert read("openai/gsm8k", config="main") == [f"t {index}" for index in range(10)]
