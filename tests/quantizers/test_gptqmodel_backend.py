"""GPTQModel as a backend: our settings and no others, no litter, no noise, nothing unsolved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plr.bases.load import load_quantized
from plr.errors import ModelError
from plr.quantizers import gptqmodel, quantizers

from .conftest import logits, make_batches, make_model, quantized, spec_of

pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: pip install plr[gptqmodel]")


def test_it_leaves_only_the_checkpoint_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    threads = torch.get_num_threads()
    _, record = quantized("gptqmodel", tmp_path / "made")
    assert not list((tmp_path / "here").iterdir())
    assert {f.name for f in (tmp_path / "made").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
    }
    assert capfd.readouterr().out == ""
    assert torch.get_num_threads() == threads
    assert record["gptqmodel"].startswith("7.")
    assert record["left_dense"] == []
    assert {m["damp_percent"] for m in record["modules"]} == {0.05}
    assert {m["n_tokens"] for m in record["modules"]} == {int(sum(b["attention_mask"].sum() for b in make_batches()))}


@pytest.mark.parametrize(
    "over",
    [
        {"bits": 2, "act_group_aware": True},
        {"bits": 3, "sym": False, "damp_percent": 0.02},
        {"bits": 8, "desc_act": True, "static_groups": True},
        {"bits": 4, "group_size": -1},
    ],
    ids=str,
)
def test_every_setting_is_the_one_asked_for(over: dict[str, Any], tmp_path: Path) -> None:
    model, _ = quantized("gptqmodel", tmp_path, **over)
    written = json.loads((tmp_path / "quantize_config.json").read_text())
    spec = spec_of("gptqmodel", **over)
    for name in ("bits", "group_size", "sym", "desc_act"):
        assert written[name] == getattr(spec, name)
    for name in ("static_groups", "act_group_aware", "damp_percent"):
        assert written["meta"][name] == getattr(spec, name)
    assert written["meta"]["fallback"] is None
    assert torch.equal(logits(load_quantized(tmp_path, dtype=torch.float32, device="cpu")), logits(model))
    exact = logits(make_model())
    assert (logits(model) - exact).norm() < {2: 1.0, 3: 0.5, 4: 0.25, 8: 0.02}[spec.bits] * exact.norm()


@pytest.mark.parametrize("loss", [str(gptqmodel.UNSOLVED), "rtn fallback", "nan"])
def test_a_layer_that_came_back_unsolved_is_an_error(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"layer": 1, "module": "mlp.up_proj", "loss": loss, "damp": "0.05", "samples": "9", "time": "0.1"}
    monkeypatch.setattr(gptqmodel, "_run", lambda *_: [entry])
    with pytest.raises(ModelError, match=r"could not solve model\.layers\.1\.mlp\.up_proj"):
        quantizers.get("gptqmodel").quantize(make_model(), make_batches(), spec_of("gptqmodel"), tmp_path)


def test_tokens_that_gptqmodel_left_out_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"layer": 1, "module": "mlp.up_proj", "loss": "0.1", "damp": "0.05", "samples": "9", "time": "0.1"}
    monkeypatch.setattr(gptqmodel, "_run", lambda *_: [entry])
    with pytest.raises(ModelError, match="calibrated on 9 of the 174 tokens"):
        quantizers.get("gptqmodel").quantize(make_model(), make_batches(), spec_of("gptqmodel"), tmp_path)


def test_what_gptqmodel_cannot_do_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GPTQModel cannot quantize this model"):
        quantizers.get("gptqmodel").quantize(make_model(), [], spec_of("gptqmodel"), tmp_path)
    assert not (tmp_path / ".gptqmodel").exists()
