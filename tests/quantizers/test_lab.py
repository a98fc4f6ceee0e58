"""NF4 end to end: as k of a training, as l of a restoration, made dense, and requantized to."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.errors import UsageError
from plr.lab import Lab

from .conftest import need

SMALL = (
    "quantize.method=nf4",
    "quantize.group_size=64",
    "train.train_limit=16",
    "train.batch_size=8",
    "train.validation_limit=4",
    "train.learning_rate=0.001",
    "evaluate.limit=2",
)


def test_qlora_on_the_embedded_base(tmp_path: Path) -> None:
    need("nf4")
    lab = Lab(tmp_path, offline=True, dtype="float32", device="cpu")
    base = lab.quantize(bits=4, overrides=SMALL)
    assert base.metrics["calibration"] == {}
    assert base.metrics["bytes"] == sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    adapter = lab.train(bits=4, overrides=SMALL)
    curve = [point["eval_loss"] for point in adapter.metrics["curve"] if "eval_loss" in point]
    assert curve[-1] < curve[0]
    on_16 = lab.restore(adapter, bits=16)
    assert on_16.metrics["largest_logit_change"] > 0
    roundtrip = lab.restore(adapter, bits=4, mode="roundtrip")
    assert roundtrip.metrics["largest_merge_difference"] < 0.1  # saved in the 16 bits of the source
    requantized = lab.restore(adapter, bits=4, mode="requantize")
    for target in (base, adapter, roundtrip, requantized):
        result = lab.evaluate(target, task="tiny_math", limit=2)
        assert result.metrics["n"] == 2
    with pytest.raises(UsageError, match="merge"):
        lab.restore(adapter, bits=4, merge=True)
    with pytest.raises(UsageError, match="cannot carry out bits 8") as refused:
        lab.restored(adapter, bits=8)
    assert refused.value.hint == "name the method of the base to restore to, e.g. --method gptq"
    on_8 = lab.restored(adapter, bits=8, method="gptq").base
    assert (on_8.quantization.method, on_8.bits) == ("gptq", 8)
    assert on_8.quantization.calibration.task == adapter.step.task
