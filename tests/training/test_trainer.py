"""A training that diverges stops at its first loss that is not finite; one that was killed goes on from bytes that are whole."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from plr.core.fingerprint import folder_sha256
from plr.core.specs import Train
from plr.core.store import Artifact
from plr.engines import jobs
from plr.engines.plan import Event
from plr.errors import TrainingError
from plr.lab import Lab


def test_a_diverged_training_is_no_success(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, dtype="float32")
    settings = ("train.train_limit=64", "train.validation_limit=8", "train.learning_rate=1.0e+18")
    with pytest.raises(TrainingError, match=r"diverged: the (training|validation) loss is (nan|inf)") as caught:
        lab.train(bits=16, task="tiny_sql", overrides=settings)
    assert "train.learning_rate" in str(caught.value.hint)
    assert lab.store.all("adapter") == []


SMALL = (
    "train.train_limit=48",
    "train.batch_size=16",
    "train.validation_limit=8",
    "quantize.samples=16",
    "train.evaluations_per_epoch=3",
    "train.epochs=2",
)


def killed_training(home: Path, step: int) -> tuple[Lab, Train, Path]:
    """Leave the work of a training that was killed after `step` optimizer steps, with a checkpoint after every one."""
    lab = Lab(home, offline=True, dtype="float32", checkpoint_seconds=0)
    trained = lab.adapter(bits=16, task="tiny_sql", overrides=SMALL)

    class Killed(Exception):
        pass

    def tell(event: Event) -> None:
        if event.what == "progress" and event.done > step:
            raise Killed

    with pytest.raises(Killed):
        lab.make(trained, on_event=tell)
    return lab, trained, lab.store.work(trained)


def weights(artifact: Artifact) -> str:
    return folder_sha256(artifact.path, patterns=("*.safetensors",))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    lab = Lab(tmp_path_factory.mktemp("whole"), offline=True, dtype="float32")
    return weights(lab.train(bits=16, task="tiny_sql", overrides=SMALL))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_world_size_without_a_launcher_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    trained = Lab(tmp_path, offline=True, dtype="float32").train(bits=16, task="tiny_sql", overrides=SMALL)
    assert weights(trained) == undisturbed
    assert trained.metrics["devices"] == 1
    assert "WORLD_SIZE=4" in caplog.text
    assert "trains alone" in caplog.text


def test_processes_that_do_not_meet_are_said(tmp_path: Path) -> None:
    """Their port is taken: whoever waits there is none of them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **place, "PLR_HOME": str(tmp_path)}
        sets = [word for text in SMALL for word in ("--set", text)]
        done = subprocess.run(
            [sys.executable, "-m", "plr", "train", "--device", "cpu", "--bits", "16", "--task", "tiny_sql", *sets],
            env={**os.environ, **launch},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "the 2 processes of WORLD_SIZE did not meet at 127.0.0.1" in done.stderr
    assert "waits for the others" in done.stderr
    assert "defect" not in done.stderr


def test_a_follower_without_a_first_process_ends(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, dtype="float32")
    step = lab.adapter(bits=16, task="tiny_sql", overrides=SMALL)
    with pytest.raises(TrainingError, match="the first process left no"):
        jobs._follow(step, jobs.Workbench(lab.store, lab.runtime()), lambda _: None)


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone", "without sums", "all"])
def test_a_broken_checkpoint_is_passed_over(
    tmp_path: Path, undisturbed: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab, trained, work = killed_training(tmp_path, step=4)
    checkpoints = sorted(work.glob("checkpoint-*"))
    assert len(checkpoints) == 2
    newest = checkpoints[-1] / "optimizer.safetensors"
    match how:
        case "flipped":
            flip(newest)
        case "cut":
            newest.write_bytes(newest.read_bytes()[:-9])
        case "emptied":
            newest.write_bytes(b"")
        case "gone":
            newest.unlink()
        case "without sums":
            (checkpoints[-1] / "sha256.json").unlink()
        case _:
            for folder in checkpoints:
                flip(folder / "trained.safetensors")
    made = lab.make(trained)
    assert weights(made) == undisturbed
    assert made.metrics["resumed_from_step"] == (0 if how == "all" else int(checkpoints[0].name.rpartition("-")[2]))
    assert f"the checkpoint {checkpoints[-1]} is broken" in caplog.text


def test_a_broken_best_adapter_begins_anew(tmp_path: Path, undisturbed: str, caplog: pytest.LogCaptureFixture) -> None:
    lab, trained, work = killed_training(tmp_path, step=4)
    (best,) = work.glob("best-*")
    flip(best / "adapter_model.safetensors")
    made = lab.make(trained)
    assert weights(made) == undisturbed
    assert made.metrics["resumed_from_step"] == 0
    assert "begins anew" in caplog.text
