"""Two processes train the adapter one process trains: joined by accelerate at every width, and sharded by FSDP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from plr.core.store import Store

ROOT = Path(__file__).parents[2]
WORDS = ["train", "--device", "cpu", "--json"]
# On GPUs `accelerate launch` starts the processes; on CPUs torchrun does, and accelerate joins them with gloo.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SMALL = ["train.train_limit=48", "train.batch_size=16", "train.validation_limit=8"]


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["16", "8", "4", "3", "2"])
def test_two_processes_train_what_one_trains(bits: str, tmp_path: Path) -> None:
    """The batch is cut over the processes; losses are equal up to the rounding of the split sum."""
    sets = [word for text in SMALL for word in ("--set", text)]
    found = {}
    for name, words in {"one": [sys.executable], "two": LAUNCH}.items():
        environment = {**os.environ, "PLR_HOME": str(tmp_path / name)}
        done = subprocess.run(
            [*words, "-m", "plr", *WORDS, "--bits", bits, *sets],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        found[name] = Store(tmp_path / name).find(None, ("adapter",))
    assert (found["one"].metrics["devices"], found["two"].metrics["devices"]) == (1, 2)
    losses = [[p["loss"] for p in found[name].metrics["curve"] if "loss" in p] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    one, two = (load_file(found[name].path / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert (tensor - two[key]).norm() < 0.1 * tensor.norm() + 1e-3, key


@pytest.mark.slow
def test_fsdp_trains_an_adapter_on_packed_layers_as_one_process_does() -> None:
    """Parameters are sharded (the adapter, embeddings, norms); the codes are buffers: each process holds them all."""
    script = str(ROOT / "tests" / "gptq" / "sharded_training.py")
    words = [*LAUNCH, script, "8", "4", "3", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [run["bits"] for run in runs] == [8, 4, 3, 2]
    for run in runs:
        assert run["sharded"] == pytest.approx(run["alone"], rel=1e-4)
        assert run["alone"][-1] < run["alone"][0]
        assert (run["layers"], run["adapter"], run["codes"]) == (14, "DTensor", "Tensor")
