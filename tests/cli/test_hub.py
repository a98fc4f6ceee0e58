"""The command line against a hub on localhost and against none: what it prints, that it ends soon, that offline asks nothing."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import SHA, FakeHub, Fault, Repo
from hub_client import environment

from plr.embedded import tiny_path

GUARDED = """
import sys
def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        print("NETWORK", event, args, file=sys.stderr, flush=True)
        raise SystemExit(99)
sys.addaudithook(guard)
"""
MAIN = "import sys; from plr.cli import main; sys.argv[0] = 'plr'; main()"


def plr(hub: str, home: Path, *command: str, guarded: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """One command in a process that knows no other hub and no other cache."""
    code = (GUARDED if guarded else "") + MAIN
    return subprocess.run(
        [sys.executable, "-c", code, *command],
        env=environment(hub, home) | more,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def gsm8k(count: int = 40) -> Repo:
    def table(name: str) -> bytes:
        buffer = io.BytesIO()
        rows = [{"question": f"{name} {i}? " + "y" * 200, "answer": f"{i} #### {i}"} for i in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none")
        return buffer.getvalue()

    card = "---\nconfigs:\n- config_name: main\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test")
    )
    files = {f"main/{split}-00000-of-00001.parquet": table(split) for split in ("train", "test")}
    return Repo(files | {"README.md": f"{card}---\n".encode()})


def test_without_a_network_a_task_says_so_soon(tmp_path: Path) -> None:
    done = plr("http://127.0.0.1:9", tmp_path, "tasks", "check", "gsm8k", PLR_HUB_TRIES="1")
    assert done.returncode == 2
    assert "the hub cannot be reached for 'openai/gsm8k': [Errno 111] Connection refused; one try in " in done.stderr
    assert "next: check the network and run it again, or give --data FOLDER with rows of gsm8k" in done.stderr


@pytest.mark.slow
def test_what_was_fetched_once_needs_no_network(tmp_path: Path) -> None:
    models = {file.name: file.read_bytes() for file in tiny_path().iterdir() if file.is_file()}
    with FakeHub({"openai/gsm8k": gsm8k(), "org/tiny": Repo(models, "models")}).running() as hub:
        shown = plr(hub.endpoint, tmp_path, "tasks", "show", "gsm8k", "--row", "3")
        assert "test 3?" in shown.stdout, shown.stderr
        quantize = ("quantize", "--model", "org/tiny", "--calibration", "task:gsm8k", "--method", "rtn", "--bits", "4")
        made = plr(hub.endpoint, tmp_path, *quantize)
        assert made.returncode == 0, made.stderr
        base = next((tmp_path / "plr" / "base").iterdir()).name
        count = len(hub.asked)
        again = plr(hub.endpoint, tmp_path, "tasks", "show", "gsm8k", "--row", "3", "--offline", guarded=True)
        assert (again.stdout, again.stderr) == (shown.stdout, shown.stderr)
        checked = plr(hub.endpoint, tmp_path, "tasks", "check", "gsm8k", "--offline", guarded=True)
        assert checked.returncode == 0, checked.stderr
        for command in (quantize, ("eval", base, "--task", "gsm8k", "--limit", "2")):
            done = plr(hub.endpoint, tmp_path, *command, "--offline", guarded=True)
            assert done.returncode == 0, done.stderr
        assert len(hub.asked) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("tasks", "show", "gsm8k", "--offline"),
            "no row to show: plr is offline, and openai/gsm8k from the hub is not in",
        ),
        (("tasks", "check", "gsm8k", "--offline"), "plr is offline, and openai/gsm8k from the hub is not in the cache"),
        (
            ("quantize", "--model", "org/tiny", "--bits", "4", "--offline"),
            "org/tiny is not in the local hub cache and plr is offline",
        ),
    ],
)
def test_offline_without_the_data(tmp_path: Path, command: tuple[str, ...], said: str) -> None:
    done = plr("http://127.0.0.1:9", tmp_path, *command, guarded=True)
    assert said in done.stdout + done.stderr
    assert "hf download" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_three_commands_at_once_on_an_empty_cache(tmp_path: Path) -> None:
    with FakeHub({"openai/gsm8k": gsm8k()}, [Fault("cut", times=2)]).running() as hub:
        command = [sys.executable, "-c", MAIN, "tasks", "show", "gsm8k", "--row", "5"]
        running = [
            subprocess.Popen(command, env=environment(hub.endpoint, tmp_path), stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        outs = [process.communicate(timeout=600)[0] for process in running]
        whole = [one for one in hub.downloads() if "/content/" in one.path and one.range is None]
    assert "test 5?" in outs[0]
    assert outs[1:] == outs[:1] * 2
    assert len(whole) == 2, "each file is fetched once"


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(tmp_path: Path) -> None:
    big = Repo({"README.md": b"---\n---\n", "train.csv": b"question,answer\n" + b"q,#### 1\n" * 100_000})
    code = "from plr.hub import fetch; import sys; f = fetch('dataset', 'org/big', sys.argv[1], list, offline=False, advice='')"
    with FakeHub({"org/big": big}, [Fault("stall", "train.csv", times=1)]).running() as hub:
        command = [sys.executable, "-c", code, SHA]
        process = subprocess.Popen(command, env=environment(hub.endpoint, tmp_path))
        parts = tmp_path / "hub" / "datasets--org--big" / "plr" / "parts"
        while process.poll() is None and sum(path.stat().st_size for path in parts.glob("*")) < 300_000:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        had = max(path.stat().st_size for path in parts.glob("*"))
        assert subprocess.run(command, env=environment(hub.endpoint, tmp_path), check=False).returncode == 0
        assert [one.range for one in hub.downloads() if "train.csv" in one.path] == [None, f"bytes={had}-"]
    body = (tmp_path / "hub" / "datasets--org--big" / "snapshots" / SHA / "train.csv").read_bytes()
    assert body == big.files["train.csv"]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_download_ends_it_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with FakeHub({"openai/gsm8k": gsm8k(count=2000)}, [Fault("stall", times=1)]).running() as hub:
        command = [sys.executable, "-c", MAIN, "tasks", "show", "gsm8k"]
        process = subprocess.Popen(command, env=environment(hub.endpoint, tmp_path), stderr=subprocess.PIPE, text=True)
        parts = tmp_path / "hub" / "datasets--openai--gsm8k" / "plr" / "parts"
        while process.poll() is None and not any(path.stat().st_size for path in parts.glob("*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1]
        assert (process.returncode, "Traceback" in error) == (130, False)
        assert "interrupted" in error
        assert "run the same command again" in error
        done = plr(hub.endpoint, tmp_path, "tasks", "show", "gsm8k")
        assert "test 0?" in done.stdout, done.stderr
        assert [one.range is None for one in hub.downloads() if "/content/" in one.path] == [True, False, True]
