"""What is read out of a base's manifest and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plr.bases.modules import disk_bits, modules_of
from plr.report.bases import GATE_HEAD, answers_text, gate_rows, severity


def test_kinds_are_short_where_that_says_enough_and_experts_are_one_kind() -> None:
    names = [f"model.layers.{i}.{rest}" for i in (0, 11) for rest in ("attn.q_proj", "mlp.experts.3.up", "mlp.up")]
    found = modules_of({"modules": [{"name": name} for name in names]})
    assert [m.kind for m in found] == ["q_proj", "mlp.experts.up", "mlp.up"] * 2
    assert [m.block for m in found] == [0, 0, 0, 11, 11, 11]


@pytest.mark.parametrize("metrics", [{}, {"modules": []}, {"modules": None}])
def test_without_modules(metrics: dict[str, Any]) -> None:
    assert modules_of(metrics) == []
    assert disk_bits(Path("nowhere"), []) is None


def test_numbers_that_were_not_measured_are_none() -> None:
    (module,) = modules_of({"modules": [{"name": "a.0.b", "error": None, "damp": 2}]})
    assert (module.number("error"), module.number("damp"), module.number("new_key")) == (None, 2.0, None)


def test_disk_bits_count_codes_scales_and_zeros_and_no_bias_or_other_tensor(tmp_path: Path) -> None:
    columns, rows, group = 64, 32, 16
    for block in (0, 1):
        name = f"model.layers.{block}.q_proj"
        tensors = {
            f"{name}.qweight": torch.zeros(columns * 2 // 32, rows, dtype=torch.int32),
            f"{name}.qzeros": torch.zeros(columns // group, rows * 2 // 32, dtype=torch.int32),
            f"{name}.scales": torch.zeros(columns // group, rows, dtype=torch.float16),
            f"{name}.g_idx": torch.zeros(columns, dtype=torch.int32),
            f"{name}.bias": torch.zeros(rows),
            f"model.layers.{block}.norm.weight": torch.zeros(columns),
        }
        save_file(tensors, tmp_path / f"model-{block}.safetensors", metadata={"format": "pt"})
    shape = {"in_features": columns, "out_features": rows}
    modules = modules_of({"modules": [{"name": f"model.layers.{i}.q_proj", **shape} for i in (0, 1)]})
    assert disk_bits(tmp_path, modules) == pytest.approx(2 + (16 + 2) / group + 32 / rows)
    (tmp_path / "model-1.safetensors").unlink()
    assert disk_bits(tmp_path, modules) is None, "a layer that is not there is not counted as nothing"


def test_gate_rows() -> None:
    text = {"text": "a", "tokens": 2048, "perplexity_16bit": 10.0, "perplexity": 12345.6, "kl": 0.01234,
            "top1_agreement": 0.9, "kept": 1.0}  # fmt: skip
    rows = gate_rows({"texts": [text, {"text": "b", "not_measured": "empty"}]})
    assert rows == [
        ("a", "2,048", "10.00 to 1.23e+04", "1.23e+03", "0.0123", "90.0 %"),
        ("b", "not measured: empty"),
    ]
    assert len(rows[0]) == len(GATE_HEAD)
    assert gate_rows({"verdict": "ok", "loss": 1.0}) == []


def test_answers_of_new_and_old_manifests() -> None:
    assert answers_text({"rows": 0}) is None
    assert answers_text({"loss": 1.5}) == "1.500 nats a token"
    new = {"rows": 32, "loss_16bit": 1.0, "loss": 1.5, "chance": 6.64}
    assert answers_text(new) == "1.000 to 1.500 nats a token (32 rows, chance 6.64)"


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        ("ok", "ok"),
        ("damaged: 20% left", "damaged"),
        ("broken: at or above chance", "broken"),
        ("not measured: no task", "unknown"),
        ("", "unknown"),
    ],
)
def test_severity(verdict: str, word: str) -> None:
    assert severity(verdict) == word
