"""Bottleneck adapters: the formula, k-bit layers and whole modules, several adapters, saving, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from plr.adapters.bottleneck import BottleneckConfig, BottleneckLayer
from plr.errors import ConfigError, ModelError

from .conftest import small_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def move(model: Any, name: str = "default", by: float = 0.5) -> None:
    """Random adapter weights in place of those of the start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                parameter.add_(by * torch.randn_like(parameter))


def attach(base: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    task = "SEQ_CLS" if "Classification" in type(base).__name__ else "CAUSAL_LM"
    return peft.get_peft_model(base, BottleneckConfig(task_type=task, bottleneck_size=8, **config))


WHERE = {"serial": None, "parallel": ["mlp"], "parallel linear": ["down_proj", "q_proj"]}


@pytest.mark.parametrize("bits", [16, 3])
@pytest.mark.parametrize("where", WHERE)
def test_it_is_the_base_at_the_start_and_trains_the_adapter_only(where: str, bits: int) -> None:
    base = small_model(bits=bits)
    before = logits(base)
    model = attach(base, mode=where.split()[0], target_modules=WHERE[where])
    assert torch.equal(logits(model), before)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("bottleneck_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("mode", ["serial", "parallel"])
def test_a_layer_computes_the_papers_formula(mode: str) -> None:
    model = attach(small_model(), mode=mode, target_modules=["down_proj"], scaling=4.0, non_linearity="relu")
    move(model)
    layer = next(module for module in model.modules() if isinstance(module, BottleneckLayer))
    x = torch.randn(2, 3, 64)
    fx = F.linear(x, layer.base_layer.weight)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    hidden = torch.relu((fx if mode == "serial" else x) @ down.weight.t() + down.bias)
    expected = fx + 4.0 * (hidden @ up.weight.t() + up.bias)
    torch.testing.assert_close(layer(x), expected)


def test_parallel_around_a_whole_module_adds_to_its_output() -> None:
    model = attach(small_model(), mode="parallel", target_modules=["mlp"])
    move(model)
    layer = model.base_model.model.model.layers[0].mlp
    assert (layer.in_features, layer.out_features) == (32, 32)
    x = torch.randn(1, 4, 32)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + up(F.gelu(down(x))))


def test_parameters_are_those_of_two_small_layers_with_bias() -> None:
    model = attach(small_model())
    per_layer = [8 * (32 + 1) + 32 * (8 + 1)] * 2  # o_proj and down_proj both return 32 features
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * sum(per_layer)


@pytest.mark.parametrize(("kind", "count"), [("bert", 4), ("llama", 4)])
def test_default_targets_are_the_output_projections_of_both_sublayers(kind: str, count: int) -> None:
    model = attach(small_model(kind))
    names = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    assert len(names) == count
    ends = ("attention.output.dense", "output.dense") if kind == "bert" else ("o_proj", "down_proj")
    assert all(name.endswith(ends) for name in names)


@pytest.mark.parametrize("kind", ["bert", "llama_classifier"])
def test_a_classification_head_trains_and_is_saved(kind: str, tmp_path: Path) -> None:
    model = attach(small_model(kind))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("score" in name or "classifier" in name for name in trained)
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(small_model(kind), tmp_path).eval()), logits(model))


@pytest.mark.parametrize("bits", [16, 2])
def test_a_saved_adapter_opens_with_equal_logits_and_goes_on_other_bases(bits: int, tmp_path: Path) -> None:
    model = attach(small_model(bits=4), target_modules=["o_proj", "down_proj"])
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(small_model(bits=4), tmp_path)), logits(model))
    lean = peft.PeftModel.from_pretrained(small_model(bits=4), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean), logits(model))
    base = small_model(bits=bits)
    before = logits(base)
    assert not torch.allclose(logits(peft.PeftModel.from_pretrained(base, tmp_path)), before)


def test_several_adapters_are_added_switched_and_deleted() -> None:
    base = small_model()
    before = logits(base)
    model = attach(base)
    model.add_adapter("other", BottleneckConfig(task_type="CAUSAL_LM", bottleneck_size=4, mode="parallel"))
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".other." in name)
    move(model)
    move(model, "other")
    one = logits(model)
    model.set_adapter("other")
    two = logits(model)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert len({float(t.sum()) for t in (before, one, two, both)}) == 4
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    x = torch.randn(1, 2, 32)
    terms = []
    for name in ("default", "other"):
        layer.set_adapter([name])
        terms.append(layer(x) - layer.base_layer(x))
    layer.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + terms[0] + terms[1])
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(logits(model), one)


def test_a_bfloat16_base_keeps_its_dtype_and_the_adapter_float32() -> None:
    model = attach(small_model().to(torch.bfloat16))
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    assert layer.bottleneck_up["default"].weight.dtype == torch.float32
    assert logits(model).dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        model = attach(small_model())
        move(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_an_adapter_for_each_row_is_refused_not_left_unheard() -> None:
    model = attach(small_model())
    with pytest.raises(ModelError, match="adapter_names was given to BottleneckModel"):
        model(input_ids=IDS, adapter_names=["default", "__base__"])


def test_merging_is_refused_and_changes_nothing() -> None:
    model = attach(small_model())
    move(model)
    before = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.base_model.merge_and_unload(True, True)):
        with pytest.raises(ModelError, match="non-linearity"):
            merge()
    assert torch.equal(logits(model), before)


def test_a_module_inside_another_target_is_refused() -> None:
    with pytest.raises(ModelError, match=r"nested: model\.layers\.0\.mlp\.down_proj lies in model\.layers\.0\.mlp"):
        attach(small_model(), mode="parallel", target_modules=["mlp", "down_proj"])
    model = attach(small_model(), mode="parallel", target_modules=["mlp"])
    with pytest.raises(ModelError, match="nested"):
        model.add_adapter("other", BottleneckConfig(task_type="CAUSAL_LM", target_modules=["down_proj"]))


def test_a_module_that_returns_no_single_tensor_is_refused() -> None:
    model = attach(small_model(), mode="parallel", target_modules=["self_attn"])
    with pytest.raises(ModelError, match="self_attn returns tuple"):
        logits(model)


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="without a linear layer"):
        attach(small_model(), target_modules=["input_layernorm"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "beside"}, "mode is 'beside'"),
        ({"bottleneck_size": 0}, "bottleneck_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"scaling": 0.0}, "scaling is 0.0"),
        ({"non_linearity": "gelo"}, "non_linearity is 'gelo'"),
    ],
)
def test_impossible_settings_say_what_is_possible(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BottleneckConfig(**config)
    assert caught.value.expected
    assert caught.value.hint
