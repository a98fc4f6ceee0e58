"""BitFit: every bias and nothing else, at every width; models without biases; merging that a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tiny_models import rounded

from plr.adapters.bitfit import BitFitConfig, BitFitLayer
from plr.errors import ModelError

from .conftest import small_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
MODELS = ("bert", "roberta", "llama", "qwen2", "gpt2")


def make_model(kind: str, bits: int = 16) -> Any:
    model = small_model(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return rounded(model, bits, group_size=16)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def attach(base: Any, **config: Any) -> Any:
    task = "SEQ_CLS" if "Classification" in type(base).__name__ else "CAUSAL_LM"
    return peft.get_peft_model(base, BitFitConfig(task_type=task, **config))


def move(model: Any, name: str = "default") -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}" in key:
                parameter.add_(0.5 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen2", "gpt2"])
def test_by_default_every_bias_outside_the_head_trains_and_nothing_else(kind: str) -> None:
    base = make_model(kind)
    biases = [p for name, p in base.named_parameters() if name.endswith("bias") and "classifier" not in name]
    model = attach(base)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    deltas = [p for name, p in trained.items() if "bitfit_delta" in name]
    heads = [name for name in trained if "bitfit_delta" not in name]
    assert sorted(p.numel() for p in deltas) == sorted(p.numel() for p in biases)
    assert all("classifier" in name for name in heads)
    assert bool(heads) == (kind in ("bert", "roberta"))


def test_it_computes_what_training_the_biases_themselves_computes() -> None:
    """The oracle is the plain model with only its biases trainable, after the same three steps of SGD."""
    plain, adapted = make_model("gpt2"), attach(make_model("gpt2"))
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    for model in (plain, adapted):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
    assert not torch.allclose(logits(plain), logits(make_model("gpt2")), atol=1e-2)
    torch.testing.assert_close(logits(adapted), logits(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [16, 8, 3])
def test_it_trains_at_every_width_and_leaves_the_base_alone(bits: int) -> None:
    base = make_model("qwen2", bits)
    before = logits(base)
    model = attach(base)
    assert torch.equal(logits(model), before)
    losses = []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("kind", ["bert", "qwen2", "gpt2"])
def test_a_saved_adapter_opens_with_equal_logits_on_the_same_base(kind: str, tmp_path: Path) -> None:
    model = attach(make_model(kind, 4))
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(make_model(kind, 4), tmp_path)), logits(model))
    lean = peft.PeftModel.from_pretrained(make_model(kind, 4), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean), logits(model))
    restored = peft.PeftModel.from_pretrained(make_model(kind), tmp_path)
    assert not torch.allclose(logits(restored), logits(make_model(kind)))


@pytest.mark.parametrize("kind", ["bert", "qwen2", "gpt2"])
def test_merging_into_biases_that_are_there_is_exact_and_can_be_undone(kind: str) -> None:
    base = make_model(kind)
    before = logits(base)
    model = attach(base)
    layers = [module for module in model.modules() if isinstance(module, BitFitLayer)]
    move(model)
    expected = [module.base_layer.bias + module.bitfit_delta["default"] for module in layers]
    served = logits(model)
    model.merge_adapter(safe_merge=True)
    assert all(torch.equal(m.base_layer.bias, e) for m, e in zip(layers, expected, strict=True))
    torch.testing.assert_close(logits(model), served)
    model.unmerge_adapter()
    with model.disable_adapter():
        if kind != "bert":  # its head is the adapter's
            assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model.merge_and_unload()), served)


def test_a_model_without_biases_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has no bias to train") as caught:
        attach(make_model("llama"))
    assert "add_biases: true" in str(caught.value.hint)
    with pytest.raises(ModelError, match=r"the bias of model\.layers\.0\.self_attn\.q_proj, which has none"):
        attach(make_model("llama"), target_modules=["q_proj"])


def test_a_partly_biased_model_is_not_trained_in_part_in_silence() -> None:
    with pytest.raises(ModelError, match="o_proj, which has none"):
        attach(make_model("qwen2"), target_modules=["q_proj", "o_proj"])


def test_a_norm_without_bias_cannot_be_given_one() -> None:
    with pytest.raises(ModelError, match="LlamaRMSNorm that has none"):
        attach(make_model("llama"), target_modules=["input_layernorm"], add_biases=True)


@pytest.mark.parametrize("bits", [16, 3])
def test_added_biases_train_and_move_to_another_width(bits: int, tmp_path: Path) -> None:
    model = attach(make_model("llama", 4), add_biases=True)
    names = [name.rsplit(".", 1)[1] for name, m in model.named_modules() if isinstance(m, BitFitLayer)]
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    move(model)
    model.save_pretrained(tmp_path)
    served = peft.PeftModel.from_pretrained(make_model("llama", bits), tmp_path)
    assert not torch.allclose(logits(served), logits(make_model("llama", bits)))


@pytest.mark.parametrize(
    ("targets", "flags"),
    [
        (["q_proj", "v_proj"], {"attention_bias"}),
        (["up_proj"], {"mlp_bias"}),
        (None, {"attention_bias", "mlp_bias"}),
    ],
)
def test_merged_added_biases_survive_saving_and_loading(
    targets: list[str] | None, flags: set[str], tmp_path: Path
) -> None:
    model = attach(make_model("llama"), add_biases=True, target_modules=targets)
    move(model)
    served = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), served)
    assert {flag for flag in ("attention_bias", "mlp_bias") if getattr(merged.config, flag)} == flags
    merged.save_pretrained(tmp_path)
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded.eval()), logits(merged))


def test_added_biases_are_merged_and_unmerged_in_place() -> None:
    model = attach(make_model("llama"), add_biases=True, target_modules=["q_proj"])
    move(model)
    served = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), served)
    model.unmerge_adapter()
    assert model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias is None
    assert torch.equal(logits(model), served)


def test_a_merge_that_a_checkpoint_would_lose_is_refused_and_changes_nothing() -> None:
    model = attach(make_model("qwen2"), add_biases=True, target_modules=["q_proj", "o_proj"])
    move(model)
    served = logits(model)
    with pytest.raises(ModelError, match="it would be lost on loading"):
        model.merge_and_unload()
    assert torch.equal(logits(model), served)


def test_a_merge_of_added_biases_into_codes_is_refused() -> None:
    model = attach(make_model("llama", 4), add_biases=True)
    with pytest.raises(ModelError, match="PackedLinear that has none"):
        model.merge_and_unload()


def test_several_adapters_add_up_and_come_off() -> None:
    model = attach(make_model("gpt2"))
    model.add_adapter("other", BitFitConfig(task_type="CAUSAL_LM"))
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.endswith(".other"))
    move(model)
    move(model, "other")
    one = logits(model)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert not torch.allclose(one, both)
    model.base_model.merge_adapter(["default", "other"])
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(logits(model), one)


def test_a_merge_that_is_not_finite_is_refused() -> None:
    model = attach(make_model("gpt2"))
    layer = next(module for module in model.modules() if isinstance(module, BitFitLayer))
    with torch.no_grad():
        layer.bitfit_delta["default"][0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in the merged bias"):
        model.base_model.merge_adapter(safe_merge=True)


def test_a_bfloat16_base_keeps_its_dtype_and_delta_float32() -> None:
    model = attach(make_model("gpt2").to(torch.bfloat16))
    layer = next(module for module in model.modules() if isinstance(module, BitFitLayer))
    assert layer.bitfit_delta["default"].dtype == torch.float32
    assert logits(model).dtype == torch.bfloat16
