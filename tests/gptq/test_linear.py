from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from plr.gptq import FrozenWeightError, GPTQError, PackedLinear, PackingError, Solution, gptq_solve

from .conftest import make_hessian


def solution(bits: int = 4, sym: bool = True, desc_act: bool = False, out: int = 32) -> Solution:
    W, H = torch.randn(out, 64), make_hessian(64, dtype=torch.float32)
    return gptq_solve(W, H, bits=bits, group_size=16, sym=sym, desc_act=desc_act)


def layer(bits: int = 4, bias: bool = True, **options: Any) -> PackedLinear:
    return PackedLinear.from_solution(solution(bits, **options), torch.randn(32) if bias else None)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("desc_act", [True, False])
def test_the_weight_is_that_of_the_solution(bits: int, sym: bool, desc_act: bool) -> None:
    found = solution(bits, sym, desc_act)
    packed = PackedLinear.from_solution(found)
    assert torch.equal(packed.weight, found.dequantize())
    assert torch.equal(packed.dequantize(torch.float16), found.dequantize().half())
    assert packed.dequantize().is_contiguous()
    assert packed.group_size == 16
    words = {"qweight": (64 * bits // 32, 32), "qzeros": (4, bits), "scales": (4, 32), "g_idx": (64,)}
    assert {name: tuple(t.shape) for name, t in packed.state_dict().items()} == words


@pytest.mark.parametrize("desc_act", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kernels_and_a_dense_layer_give_the_same_numbers(dtype: torch.dtype, desc_act: bool) -> None:
    dequantized = layer(3, desc_act=desc_act).to(dtype)
    packed = copy.deepcopy(dequantized)
    packed.kernel = "packed"
    X = torch.randn(2, 5, 64, dtype=dtype)
    results = []
    for module in (dequantized, packed):
        x = X.clone().requires_grad_()
        y = module(x)
        y.float().square().sum().backward()
        assert module.bias is not None
        results.append((y, x.grad, module.bias.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    dense = dequantized.to_linear()
    assert type(dense) is nn.Linear
    assert dense.weight.requires_grad
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(dense(X), results[0][0], rtol=tolerance, atol=tolerance)


def test_the_packed_kernel_has_the_right_gradient() -> None:
    packed = layer(4).double()
    packed.kernel = "packed"
    assert torch.autograd.gradcheck(packed, torch.randn(3, 64, dtype=torch.float64, requires_grad=True))


def test_the_packed_kernel_keeps_no_dense_weight_for_backward() -> None:
    packed = layer(2)
    packed.kernel = "packed"
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        packed(torch.randn(2, 64, requires_grad=True))
    assert sum(saved) < 64 * 32
    assert packed._dense is None


def test_autocast_runs_both_kernels_in_its_dtype() -> None:
    packed = layer(4)
    x = torch.randn(3, 64, requires_grad=True)
    outputs = []
    for kernel in ("packed", "dequantized"):
        packed.kernel = kernel
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = packed(x)
        y.float().sum().backward()
        outputs.append(y)
    assert outputs[0].dtype == torch.bfloat16
    assert torch.equal(*outputs)
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_weight_first_used_in_inference_mode_serves_training() -> None:
    packed = layer(4)
    with torch.inference_mode():
        packed(torch.randn(1, 64))
    x = torch.randn(1, 64, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None


def test_it_is_a_linear_layer_without_a_weight_parameter() -> None:
    packed = layer(4)
    assert isinstance(packed, nn.Linear)
    assert (packed.in_features, packed.out_features) == (64, 32)
    assert packed.weight.shape == (32, 64)
    assert not packed.weight.requires_grad
    trainable = [name for name, p in packed.named_parameters() if p.requires_grad]
    assert trainable == ["bias"]
    assert sum(p.numel() for p in packed.parameters()) == 32
    assert set(packed.state_dict()) == {"qweight", "qzeros", "scales", "g_idx", "bias"}


def test_a_layer_without_bias_still_tells_its_dtype_to_who_asks_its_parameters() -> None:
    packed = layer(4, bias=False).to(torch.bfloat16)
    first = next(packed.parameters())
    assert first.dtype == torch.bfloat16
    assert first.numel() == 0
    assert not first.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moving_to_a_dtype_changes_the_computation_and_not_the_stored_numbers(dtype: torch.dtype) -> None:
    packed = layer(4)
    before = {name: t.clone() for name, t in packed.state_dict().items() if name != "bias"}
    exact = packed.dequantize(torch.float64)
    packed.to(dtype)
    for name, t in before.items():
        assert torch.equal(packed.state_dict()[name], t)
        assert packed.state_dict()[name].dtype == t.dtype
    assert packed.compute_dtype == packed.weight.dtype == packed(torch.randn(1, 64, dtype=dtype)).dtype == dtype
    assert torch.equal(packed.weight, exact.to(dtype))


def test_a_meta_device_round_trip_keeps_shapes_and_dtypes() -> None:
    packed = layer(4)
    described = {name: (t.shape, t.dtype) for name, t in packed.state_dict().items()}
    empty = copy.deepcopy(packed).to("meta").to_empty(device="cpu")
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == described


@pytest.mark.parametrize("assign", [True, False])
def test_the_state_dict_restores_the_layer_from_safetensors(tmp_path: Any, assign: bool) -> None:
    packed = layer(3, sym=False, desc_act=True)
    save_file({k: v.contiguous() for k, v in packed.state_dict().items()}, tmp_path / "layer.safetensors")
    other = PackedLinear(64, 32, bits=3, groups=4, checkpoint_format=packed.checkpoint_format)
    other(torch.randn(1, 64))  # fills the cache with the empty layer
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=assign)
    x = torch.randn(2, 64)
    assert torch.equal(other(x), packed(x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent_and_leave_the_cache_behind(copier: Any) -> None:
    packed = layer(4)
    x = torch.randn(2, 64)
    y = packed(x)
    other = copier(packed)
    assert other._dense is None
    assert packed._dense is not None
    assert torch.equal(other(x), y)
    other.qweight.zero_()
    assert torch.equal(packed(x), y)


def test_changing_the_checkpoint_format_keeps_the_weight() -> None:
    packed = layer(4)
    before, qzeros = packed.dequantize(), packed.qzeros.clone()
    packed.set_checkpoint_format("gptq_v2")
    assert not torch.equal(packed.qzeros, qzeros)
    assert torch.equal(packed.dequantize(), before)
    packed.set_checkpoint_format("gptq")
    assert torch.equal(packed.qzeros, qzeros)


def test_an_asymmetric_group_of_positive_weights_is_stored_as_v2() -> None:
    W = torch.rand(32, 64) + 0.5
    found = gptq_solve(W, torch.eye(64), bits=4, group_size=16, sym=False)
    packed = PackedLinear.from_solution(found)
    assert packed.checkpoint_format == "gptq_v2"
    assert torch.equal(packed.weight, found.dequantize())
    with pytest.raises(PackingError):
        packed.set_checkpoint_format("gptq")


@pytest.mark.parametrize("out", [20, 33])
def test_a_ragged_out_features_fits_all_widths_but_three(out: int) -> None:
    for bits in (2, 4, 8):
        found = solution(bits, out=out)
        assert torch.equal(PackedLinear.from_solution(found).weight, found.dequantize())
    with pytest.raises(PackingError, match=rf"out_features={out} at 3 bits"):
        PackedLinear.from_solution(solution(3, out=out))


@pytest.mark.parametrize(
    "write",
    [
        lambda m: m.weight.data.add_(1),
        lambda m: m.weight.data.copy_(torch.zeros(32, 64)),
        lambda m: setattr(m.weight, "data", torch.zeros(32, 64)),
        lambda m: m.weight.__iadd__(1),
        lambda m: m.weight.__setitem__(0, 0),
        lambda m: m.weight[0].mul_(2),
        lambda m: m.weight.detach().t().zero_(),
        lambda m: m.weight.to(torch.float32).fill_(1),
        lambda m: torch.add(m.weight, 1, out=m.weight),
        lambda m: m.weight.requires_grad_(),
        lambda m: setattr(m.weight, "requires_grad", True),
        lambda m: nn.init.normal_(m.weight),
        lambda m: m.weight.split(16)[0].sub_(1),
    ],
)
@pytest.mark.parametrize("kernel", ["packed", "dequantized"])
def test_writing_to_the_weight_raises_instead_of_getting_lost(write: Any, kernel: str) -> None:
    packed = layer(4)
    packed.kernel = kernel
    before = packed.dequantize()
    with pytest.raises(FrozenWeightError, match=r"write to the weight of a k-bit layer.*merge it into a 16-bit base"):
        write(packed)
    assert torch.equal(packed.weight, before)


@pytest.mark.parametrize("value", [torch.zeros(32, 64), nn.Parameter(torch.zeros(32, 64))])
def test_assigning_a_weight_raises(value: Any) -> None:
    with pytest.raises(FrozenWeightError, match="A new weight was assigned"):
        layer(4).weight = value


def test_reading_the_weight_is_ordinary() -> None:
    packed = layer(4)
    dense = packed.dequantize()
    x = torch.randn(3, 64, requires_grad=True)
    for made in (packed.weight.clone(), packed.weight + 1, packed.weight @ x.t(), packed.weight.half()):
        assert type(made) is torch.Tensor
        made.data.add_(1)
    assert torch.equal(F.linear(x, packed.weight), F.linear(x, dense))
    packed.weight.requires_grad_(False)
    packed.weight.requires_grad = False
    assert torch.equal(torch.stack(packed.weight.unbind()), dense)


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(GPTQError, match=r"kernel='marlin'.*packed, dequantized"):
        layer(4).kernel = "marlin"
