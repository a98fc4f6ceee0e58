"""Agreement with GPTQModel: the same codes from the same Hessian, and checkpoints that each side reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plr.gptq import hessian, load_checkpoint, quantize_model, save_checkpoint
from plr.gptq.solver import gptq_solve

from .conftest import make_batches, make_model

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default raises on two cores; read when it is imported
pytest.importorskip("optimum", reason="optimum is not installed: pip install plr[gptqmodel]")
pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: pip install plr[gptqmodel]")


def gptqmodel_solve(
    W: torch.Tensor, X: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dequantized weight `[out, in]`, scale `[out, groups]` and g_idx `[in]` of GPTQModel."""
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = nn.Linear(W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W.clone()
    config = QuantizeConfig(damp_percent=0.01, act_group_aware=False, offload_to_disk=False, fallback=None, **options)
    solver = GPTQ(linear, config)
    solver.quantizer.configure(perchannel=True)
    with torch.no_grad():
        solver.add_batch(X, linear(X))
        Q, scale, _, g_idx, *_ = solver.quantize(blocksize=128)
    return Q, scale, g_idx


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "options", [{"sym": True}, {"sym": False}, {"sym": True, "desc_act": True}], ids=["sym", "asym", "desc_act"]
)
def test_same_weights_at_group_size_128(bits: int, options: dict[str, bool]) -> None:
    """Code for code, but for ties that float32 rounds either way (at most 1 in 1,000; each spreads along its row).

    What must be equal for that: group_size = block size (GPTQModel takes scales from stale weights when groups are
    smaller), damp_percent, no group-aware order, scales not yet rounded to 16 bits, and no group without a negative
    weight (GPTQModel halves the range of such a group when symmetric).
    """
    torch.manual_seed(0)
    W = torch.randn(64, 256)
    X = torch.randn(1, 1024, 256) @ (torch.eye(256) + torch.randn(256, 256) / 16)
    theirs, scale, g_idx = gptqmodel_solve(W, X, bits=bits, group_size=128, **options)
    H = hessian.empty(256)
    hessian.accumulate(H, X, 0)
    ours = gptq_solve(W, hessian.finish(H), bits=bits, group_size=128, scale_dtype=None, **options)
    assert torch.equal(ours.g_idx, g_idx.int())
    torch.testing.assert_close(ours.scale[:, 0], scale[:, 0])  # the first group has seen no error yet
    step = ours.scale[:, ours.g_idx.long()]
    assert ((ours.dequantize() - theirs).abs() > 0.01 * step).float().mean() < 1e-3


def test_smaller_groups_differ_because_our_scales_are_of_current_weights() -> None:
    torch.manual_seed(0)
    W, X = torch.randn(64, 256), torch.randn(1, 1024, 256)
    X = X @ (torch.eye(256) + torch.randn(256, 256) / 16)
    theirs, scale, _ = gptqmodel_solve(W, X, bits=4, group_size=64, sym=True)
    H = hessian.empty(256)
    hessian.accumulate(H, X, 0)
    ours = gptq_solve(W, hessian.finish(H), bits=4, group_size=64, scale_dtype=None)
    torch.testing.assert_close(ours.scale[:, 0], scale[:, 0])
    assert not torch.allclose(ours.scale[:, 1], scale[:, 1], rtol=1e-3)
    error = float(hessian.quadratic_form(W - theirs, H).sum() / hessian.quadratic_form(W, H).sum())
    assert ours.error == pytest.approx(error, rel=0.1)  # as good, with other codes


def logits_in_transformers(folder: Path, bits: int, model: Any) -> torch.Tensor:
    import transformers

    loaded = type(model).from_pretrained(
        folder, quantization_config=transformers.GPTQConfig(bits=bits, backend="gptq_torch"), dtype=torch.float32
    )
    assert any("TorchLinear" in type(m).__name__ for m in loaded.modules())
    with torch.no_grad():
        return loaded(**make_batches()[0]).logits


def check_loads_in_transformers(folder: Path, name: str, bits: int, **options: Any) -> None:
    model = make_model(name)
    skip = options.pop("skip", ("lm_head",))
    quantize_model(model, make_batches(), bits=bits, group_size=32, skip=skip, **options)
    save_checkpoint(model, folder, bits=bits, group_size=32, **options)
    with torch.no_grad():
        ours = model(**make_batches()[0]).logits
    theirs = logits_in_transformers(folder, bits, model)
    # GPTQModel multiplies scale and code in float16: each weight is rounded to 11 bits, 5e-4 relative at most.
    assert (theirs - ours).norm() < 1e-3 * ours.norm()


@pytest.mark.parametrize(("name", "bits"), [("llama", 4), ("llama", 3)])
def test_our_checkpoint_gives_the_same_logits_in_transformers(name: str, bits: int, tmp_path: Path) -> None:
    check_loads_in_transformers(tmp_path, name, bits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits", "options"),
    [
        ("llama", 8, {}),
        ("llama", 2, {}),
        ("llama", 4, {"desc_act": True}),
        ("llama", 3, {"sym": False}),
        ("llama", 4, {"sym": False, "desc_act": True, "static_groups": True}),
        ("llama", 4, {"skip": ("down_proj", "lm_head")}),
        ("opt", 4, {}),
        ("bert", 4, {}),
        ("roberta", 3, {}),
        ("gpt_neox", 4, {}),
        ("gemma2", 4, {}),
    ],
)
def test_every_kind_of_our_checkpoints_gives_the_same_logits_in_transformers(
    name: str, bits: int, options: dict[str, Any], tmp_path: Path
) -> None:
    check_loads_in_transformers(tmp_path, name, bits, **options)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
def test_our_gpt2_checkpoint_gives_the_same_logits_in_gptqmodel(bits: int, tmp_path: Path) -> None:
    """In GPTQModel itself: transformers 5.23 initialises `c_proj.weight` of any quantized GPT-2, and fails on it."""
    from gptqmodel import BACKEND, GPTQModel

    model = make_model("gpt2")
    quantize_model(model, make_batches(), bits=bits, group_size=32)
    save_checkpoint(model, tmp_path, bits=bits, group_size=32)
    theirs = GPTQModel.load(str(tmp_path), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16).model
    assert sum("TorchLinear" in type(m).__name__ for m in theirs.modules()) == 8
    with torch.no_grad():
        ours, others = (m(**make_batches()[0]).logits.float() for m in (model, theirs))
    assert (others - ours).norm() < 3e-3 * ours.norm()  # activations in float16, too


@pytest.mark.slow
def test_a_v2_checkpoint_gives_the_same_logits_in_transformers(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.abs_()  # zero points of 0
    quantize_model(model, make_batches(), bits=4, group_size=32, sym=False)
    save_checkpoint(model, tmp_path, bits=4, group_size=32, sym=False)
    assert '"checkpoint_format": "gptq_v2"' in (tmp_path / "quantize_config.json").read_text()
    with torch.no_grad():
        ours = model(**make_batches()[0]).logits
    assert (logits_in_transformers(tmp_path, 4, model) - ours).norm() < 1e-3 * ours.norm()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_checkpoint_that_gptqmodel_wrote_loads_here(bits: int, tmp_path: Path) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    source = make_model("llama")
    source.save_pretrained(tmp_path / "source")
    vocabulary = {f"t{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t0", pad_token="t0", eos_token="t2", bos_token="t1"
    ).save_pretrained(tmp_path / "source")
    config = QuantizeConfig(bits=bits, group_size=32, offload_to_disk=False, act_group_aware=True)
    theirs = GPTQModel.load(str(tmp_path / "source"), config, device="cpu", dtype=torch.float32)
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row)} for b in make_batches() for row in b["input_ids"]
    ]
    theirs.quantize(rows, batch_size=1, backend=BACKEND.GPTQ_TORCH)
    theirs.save(str(tmp_path / "quantized"))

    ours = load_checkpoint(tmp_path / "quantized", dtype=torch.float32)
    reread = logits_in_transformers(tmp_path / "quantized", bits, source)
    with torch.no_grad():
        logits = ours(**make_batches()[0]).logits
    assert (logits - reread).norm() < 1e-3 * reread.norm()
