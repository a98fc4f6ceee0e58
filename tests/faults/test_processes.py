"""Eight processes on one study and one store, one of them killed again and again: the store of a run nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.corruption import STUDY
from faults.forks import ROOT
from faults.inputs import hashes, manifests, write_inputs

PROCESSES = 8
KILLS = 24


def start(cwd: Path, home: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLR_HOME": str(cwd / home), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "plr", "grid", "study.yaml", "-o", f"runs-{home}"]
    return subprocess.Popen(words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_eight_processes_and_kills(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    alone = start(tmp_path, "alone")
    out, _ = alone.communicate()
    assert alone.returncode == 0, out.decode()
    draw, kills = random.Random(0), 0
    running = [start(tmp_path, "shared") for _ in range(PROCESSES)]
    while kills < KILLS and any(process.poll() is None for process in running):
        time.sleep(draw.uniform(0.2, 1.5))
        place = draw.randrange(PROCESSES)
        if running[place].poll() is None:
            running[place].kill()
            running[place].communicate()
            running[place] = start(tmp_path, "shared")
            kills += 1
    for process in running:
        out, _ = process.communicate()
        assert process.returncode == 0, out.decode()
    assert kills > 0
    assert hashes(tmp_path / "shared") == hashes(tmp_path / "alone")
    assert manifests(tmp_path / "shared") == manifests(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_study_and_the_same_command_goes_on(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    stopped = start(tmp_path, "stopped")
    while not list((tmp_path / "stopped").glob("base/*/manifest.json")) and stopped.poll() is None:
        time.sleep(0.01)
    stopped.send_signal(sent)
    out, _ = stopped.communicate()
    assert stopped.returncode == code, out.decode()
    assert b"Traceback" not in out
    for home in ("stopped", "alone"):
        again = start(tmp_path, home)
        out, _ = again.communicate()
        assert again.returncode == 0, out.decode()
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "alone")
