"""Linear layers laid out for oneDNN: the same products, and nothing left behind."""

from __future__ import annotations

import logging
import platform

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from plr.gptq import quantize_model
from plr.gptq.linear import PackedLinear
from plr.lm import prepacked as module
from plr.lm.generate import generate
from plr.lm.prepacked import lays_out, prepacked

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN's layout is used on x86 alone",
)


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(module, "LEAST", 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 4), (0, 3)])
def test_products_are_those_of_the_layer(shape, dtype, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(70, 50, bias, dtype=dtype), torch.randn(*shape, 70, dtype=dtype)
    with torch.no_grad(), prepacked(layer) as count:
        found = layer(x)
    # oneDNN takes float32 on every CPU, bfloat16 where it has instructions for it; the products are the layer's either way.
    assert count == (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, layer(x), rtol=tolerance, atol=tolerance)


def test_afterwards_the_layer_is_itself_and_sees_new_weights():
    layer, x = nn.Linear(8, 8), torch.ones(1, 8)
    with pytest.raises(KeyboardInterrupt), prepacked(layer):
        raise KeyboardInterrupt
    assert "forward" not in layer.__dict__
    nn.init.zeros_(layer.weight)
    assert torch.equal(layer(x)[0], layer.bias)


def test_base_layers_inside_adapters_are_reached_and_the_adapter_stays(make_model):
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with prepacked(model) as count:
            found = model(input_ids=ids).logits
    assert count == 2 * 7 + 2 * 2 + 1  # two layers, LoRA's A and B in each, the head
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["dequantized", "packed"])
def test_k_bit_layers_are_reached_where_they_keep_their_dense_weight(kernel, make_model, tokenizer, prompts):
    model = make_model("llama")
    quantize_model(model, [], method="rtn", bits=4, group_size=16, sym=True, kernel=kernel)
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with prepacked(model) as count:
            found = model(input_ids=ids).logits
    assert count == (15 if kernel == "dequantized" else 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_it_cannot_or_should_not_do_is_left_alone(monkeypatch):
    hooked = nn.Linear(8, 8)
    own = hooked.forward = lambda x: x  # as libraries do that move weights between devices
    layers = nn.ModuleList([nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8, device="meta"), hooked])
    with prepacked(layers) as count:
        assert count == 0
    assert hooked.forward is own
    with torch.autocast("cpu", torch.bfloat16), prepacked(nn.Linear(8, 8)) as count:
        assert count == 0
    monkeypatch.setattr(module, "LEAST", 65)
    with prepacked(nn.Linear(8, 8)) as count:
        assert count == 0


@pytest.fixture
def untried():
    """No dtype has been tried yet, nor has one when the test is over."""
    lays_out.cache_clear()
    yield
    lays_out.cache_clear()


class Refusing:
    """oneDNN's operations on a CPU that refuses to lay `dtype` out."""

    def __init__(self, dtype):
        self.dtype, self.tried, self.ops = dtype, 0, torch.ops.mkldnn

    def _reorder_linear_weight(self, weight):
        if weight.dtype == self.dtype:
            self.tried += 1
            raise RuntimeError(
                "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw\nat Linear.cpp:1"
            )
        return self.ops._reorder_linear_weight(weight)

    def __getattr__(self, name):
        return getattr(self.ops, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_type_that_the_cpu_refuses_is_asked_for_once_and_left_alone(dtype, untried, monkeypatch, caplog):
    refusing = Refusing(dtype)
    monkeypatch.setattr(torch.ops, "mkldnn", refusing)
    layers = nn.Sequential(nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype))
    x = torch.ones(1, 8, dtype=dtype)
    with caplog.at_level(logging.INFO, module.__name__), torch.no_grad():
        for _ in range(2):
            with prepacked(layers) as count:
                assert count == 0
                assert torch.equal(layers(x), layers[1](layers[0](x)))
        if dtype == torch.bfloat16:
            with prepacked(nn.Linear(8, 8)) as count:
                assert count == 1  # the other type is not concerned
    assert refusing.tried == 1
    said = "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw"
    assert caplog.messages == [f"linear layers in {dtype} stay as they are: {said}"]


def test_a_torch_without_the_operations_lays_nothing_out(untried, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    with prepacked(nn.Linear(8, 8)) as count:
        assert count == 0


def test_answers_in_a_type_that_the_cpu_refuses(llama, tokenizer, prompts, untried, monkeypatch):
    expected = generate(llama, tokenizer, [*prompts, *prompts], max_new_tokens=25)
    lays_out.cache_clear()
    refusing = Refusing(torch.float32)
    monkeypatch.setattr(torch.ops, "mkldnn", refusing)
    assert generate(llama, tokenizer, [*prompts, *prompts], max_new_tokens=25) == expected
    assert refusing.tried == 1


def test_too_little_memory_leaves_all_as_they_are(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 2000)
    with prepacked(nn.Linear(10, 10, bias=False)) as count:  # 400 bytes
        assert count == 1
    with prepacked(nn.Linear(10, 13, bias=False)) as count:  # 520
        assert count == 0


def test_another_type_of_input_is_the_layers_own_affair():
    layer = nn.Linear(8, 8)
    with torch.no_grad(), prepacked(layer), pytest.raises(RuntimeError, match="dtype"):
        layer(torch.ones(1, 8, dtype=torch.float64))


def test_generate_lays_weights_out_for_many_answers_and_not_for_few(llama, tokenizer, prompts, monkeypatch):
    counts = []
    layers = module._layers
    monkeypatch.setattr(module, "_layers", lambda model: (counts.append(len(layers(model))), layers(model))[1])
    few = generate(llama, tokenizer, prompts, max_new_tokens=25)
    assert counts == []
    many = generate(llama, tokenizer, [*prompts, *prompts], max_new_tokens=25)
    assert counts == [15]
    assert many == [*few, *few]


def test_products_equal_float64_within_rounding():
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 64), torch.randn(9, 256)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.no_grad(), prepacked(layer):
        torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)
