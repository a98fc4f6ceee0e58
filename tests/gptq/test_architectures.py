"""Every architecture at every width: quantized, saved and loaded again, with sizes that are no power of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from plr.gptq import PackedLinear, PackingError, WalkError, load_checkpoint, quantize_model, rtn_solve, save_checkpoint
from plr.gptq.blocks import dense_weight, features, find_blocks, find_prefix, find_targets, is_linear, replace_module

from .conftest import ARCHITECTURES, make_batches, make_model

SOLVED = ("llama", "qwen2", "gpt2", "bert")  # by GPTQ, the others by rounding: the round trip is the same
RAGGED = (72, 120, 2)  # hidden, inner, key-value heads: multiples of 24
RAGGED_3 = (96, 160, 4)  # 3 bits come in blocks of 32 codes, along both axes
OPTIONS: dict[int, tuple[tuple[int, int, int], dict[str, Any]]] = {
    2: (RAGGED, {"group_size": 24, "sym": False, "desc_act": True}),
    3: (RAGGED_3, {"group_size": 32, "sym": False}),
    4: (RAGGED, {"group_size": -1, "sym": True}),
    8: (RAGGED, {"group_size": 24, "sym": True}),
}
BATCHES = make_batches(n=1, b=4, t=20)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCHES[0]).logits


@pytest.mark.parametrize("bits", sorted(OPTIONS))
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_saved_model_comes_back_bit_for_bit(name: str, bits: int, tmp_path: Path) -> None:
    shape, options = OPTIONS[bits]
    model = make_model(name, *shape)
    targets = set(find_targets(model, ("lm_head",)))
    source: torch.Tensor = logits(model)
    method = "gptq" if name in SOLVED else "rtn"
    batches = BATCHES if method == "gptq" else []
    reports = quantize_model(model, batches, bits=bits, method=method, measure_rtn=False, **options)
    assert {report.name for report in reports} == targets
    save_checkpoint(model, tmp_path, bits=bits, **options)
    other = load_checkpoint(tmp_path, kernel="packed")
    assert type(other) is type(model)
    assert {n for n, m in other.named_modules() if isinstance(m, PackedLinear)} == targets
    assert torch.equal(logits(other), logits(model))
    left, right = model.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)
    assert 0 < (logits(model) - source).norm() < {2: 2, 3: 0.6, 4: 0.4, 8: 0.02}[bits] * source.norm()


@pytest.mark.parametrize("name", ["llama_tied", "gemma3", "gpt2", "opt"])
def test_tied_embeddings_stay_tied(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    quantize_model(model, [], bits=4, group_size=32, method="rtn")
    save_checkpoint(model, tmp_path, bits=4, group_size=32)
    other = load_checkpoint(tmp_path)
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gpt2_computes_with_its_packed_layers_what_conv1d_computes_with_their_weights(bits: int) -> None:
    packed, dense = make_model("gpt2"), make_model("gpt2")
    targets = find_targets(packed)
    assert find_prefix(targets) == "transformer.h"
    assert {name.removeprefix("transformer.h.0.") for name in targets if ".0." in name} == {
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    }  # fmt: skip
    for name, conv in targets.items():
        assert type(conv) is Conv1D
        assert features(conv) == (conv.nx, conv.nf)
        solution = rtn_solve(dense_weight(conv), bits=bits, group_size=32)
        replace_module(packed, name, PackedLinear.from_solution(solution, conv.bias))
        with torch.no_grad():
            dense.get_submodule(name).weight.copy_(solution.dequantize().t())
    torch.testing.assert_close(logits(packed), logits(dense), rtol=1e-4, atol=1e-5)


def test_a_layer_is_made_dense_again_as_the_kind_it_replaced() -> None:
    model = make_model("gpt2")
    name, conv = next(iter(find_targets(model).items()))
    solution = rtn_solve(dense_weight(conv), bits=4, group_size=32)
    replace_module(model, name, PackedLinear.from_solution(solution, conv.bias))
    replace_module(model, name, PackedLinear.from_solution(solution, conv.bias))  # a packed layer for a packed one
    packed = model.get_submodule(name)
    assert isinstance(packed, PackedLinear)
    again = packed.to_dense()
    assert type(again) is Conv1D
    assert torch.equal(again.weight, packed.weight.t())
    assert torch.equal(again.bias, conv.bias)
    x = torch.randn(3, 64)
    torch.testing.assert_close(again(x), packed(x))
    assert type(PackedLinear.from_solution(solution).to_dense()) is nn.Linear


def test_a_conv1d_saves_in_the_layout_of_its_source(tmp_path: Path) -> None:
    """Packed, made dense and saved: what transformers reads as GPT-2 has the same logits."""
    model = make_model("gpt2")
    quantize_model(model, [], bits=4, group_size=32, method="rtn")
    served = logits(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            replace_module(model, name, module.to_dense())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again), served, rtol=1e-4, atol=1e-5)


def test_weights_and_sizes_of_both_kinds_read_alike() -> None:
    linear, conv = nn.Linear(6, 10), Conv1D(10, 6)
    assert features(linear) == features(conv) == (6, 10)
    assert dense_weight(conv).shape == dense_weight(linear).shape == (10, 6)
    assert dense_weight(conv).data_ptr() == conv.weight.data_ptr()
    assert is_linear(linear)
    assert is_linear(conv)
    assert not is_linear(PackedLinear(32, 32, bits=4))
    assert not is_linear(None)


def test_blocks_with_packed_layers_only_are_quantized_already() -> None:
    model = make_model("gpt2")
    quantize_model(model, [], bits=4, group_size=32, method="rtn")
    with pytest.raises(WalkError, match="GPT2LMHeadModel is quantized already"):
        find_blocks(model)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_bits_refuse_a_ragged_layer_by_name_before_any_work(name: str) -> None:
    model = make_model(name, *RAGGED)
    with pytest.raises(PackingError, match=r"\.0\..*: in_features=72 at 3 bits.*use 2, 4 or 8 bits"):
        quantize_model(model, BATCHES, bits=3, group_size=24)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())
