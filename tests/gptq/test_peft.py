"""PEFT on PackedLinear: methods that insist on nn.Linear work, and merging is refused instead of lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from plr.gptq import FrozenWeightError, load_checkpoint, quantize_model, save_checkpoint

from .conftest import make_batches, make_model

TARGETS = ["q_proj", "v_proj"]
METHODS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(target_modules=TARGETS),
    "oft": lambda: peft.OFTConfig(target_modules=TARGETS, oft_block_size=16),
    "boft": lambda: peft.BOFTConfig(target_modules=TARGETS, boft_block_size=4),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
    "hra": lambda: peft.HRAConfig(target_modules=TARGETS),
    "randlora": lambda: peft.RandLoraConfig(target_modules=TARGETS, r=4),
    "road": lambda: peft.RoadConfig(target_modules=["q_proj"]),
    "miss": lambda: peft.MissConfig(target_modules=TARGETS, r=4),
    "shira": lambda: peft.ShiraConfig(target_modules=TARGETS, r=4),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=TARGETS, n_frequency=50),
    "c3a": lambda: peft.C3AConfig(target_modules=TARGETS, block_size=16),
}
OTHERS: dict[str, Any] = {
    "adaption_prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model("llama")
    quantize_model(model, make_batches(), bits=3, group_size=32)
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(model, folder, bits=3, group_size=32)
    return folder


def train_step(model: Any) -> tuple[float, float]:
    ids = make_batches()[0]["input_ids"]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    assert all(p.grad is not None for p in trainable)
    optimizer.step()
    return before.item(), model(input_ids=ids, labels=ids).loss.item()


@pytest.mark.parametrize("kernel", ["packed", "dequantized"])
@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
def test_a_method_trains_on_packed_layers_and_leaves_the_base_alone(base: Path, method: str, kernel: str) -> None:
    torch.manual_seed(0)
    plain = load_checkpoint(base, kernel=kernel)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    model = peft.get_peft_model(plain, {**METHODS, **OTHERS}[method]())
    first, second = train_step(model)
    assert second <= first
    after = {key.replace(".base_layer", "").replace(".model.", "."): v for key, v in plain.state_dict().items()}
    same = [key for key in before if key in after and "layernorm" not in key]
    assert any(key.endswith("qweight") for key in same)
    assert all(torch.equal(before[key], after[key]) for key in same)


@pytest.mark.parametrize("method", METHODS)
def test_merging_into_packed_layers_is_refused(base: Path, method: str) -> None:
    model = peft.get_peft_model(load_checkpoint(base), METHODS[method]())
    train_step(model)
    with pytest.raises(FrozenWeightError, match="merge it into a 16-bit base"):
        model.merge_and_unload()


@pytest.mark.parametrize("method", METHODS)
def test_unloading_gives_the_packed_base_back(base: Path, method: str) -> None:
    plain, ids = load_checkpoint(base, kernel="packed").eval(), make_batches()[0]["input_ids"]
    before = plain(input_ids=ids).logits
    model = peft.get_peft_model(plain, METHODS[method]())
    train_step(model)
    assert torch.equal(model.unload().eval()(input_ids=ids).logits, before)


def test_another_weight_is_not_taken(base: Path) -> None:
    layer = load_checkpoint(base).get_submodule("model.layers.0.self_attn.q_proj")
    with pytest.raises(FrozenWeightError):
        layer.weight = torch.nn.Parameter(torch.zeros(layer.out_features, layer.in_features))


def test_safe_merge_is_refused_too(base: Path) -> None:
    model = peft.get_peft_model(load_checkpoint(base), METHODS["lora"]())
    with pytest.raises(FrozenWeightError):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_is_refused(base: Path, init: str) -> None:
    with pytest.raises(FrozenWeightError):
        peft.get_peft_model(load_checkpoint(base), peft.LoraConfig(target_modules=TARGETS, init_lora_weights=init))


def test_both_kernels_train_the_same_adapter(base: Path) -> None:
    losses = []
    for kernel in ("packed", "dequantized"):
        torch.manual_seed(0)
        losses.append(train_step(peft.get_peft_model(load_checkpoint(base, kernel=kernel), METHODS["lora"]())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_an_adapter_saved_on_packed_layers_loads_on_the_dense_source(base: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(load_checkpoint(base), METHODS["lora"]())
    train_step(model)
    model.save_pretrained(tmp_path)
    ids = make_batches()[0]["input_ids"]
    plain = make_model("llama")
    source = plain(input_ids=ids).logits.detach()
    restored = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    served = restored(input_ids=ids).logits
    assert not torch.allclose(served, source)
    torch.testing.assert_close(restored.merge_and_unload()(input_ids=ids).logits, served, rtol=1e-3, atol=1e-4)


def train_on_packed_gpt2(folder: Path, **config: Any) -> Path:
    """An adapter on a 3-bit GPT-2, whose packed layers PEFT takes for `nn.Linear`."""
    torch.manual_seed(0)
    model = make_model("gpt2")
    quantize_model(model, [], bits=3, group_size=32, method="rtn")
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], **config))
    train_step(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_an_adapter_trained_on_packed_gpt2_acts_on_16_bit_gpt2_as_its_update_says(
    config: dict[str, bool], tmp_path: Path
) -> None:
    """The oracle adds `scale B A`, transposed, to each Conv1D weight by hand."""
    folder = train_on_packed_gpt2(tmp_path, **config)
    update = load_file(folder / "adapter_model.safetensors")
    oracle, ids = make_model("gpt2"), make_batches()[0]["input_ids"]
    source = oracle(input_ids=ids).logits.detach()
    scale = 8 / (2 if config else 4)  # lora_alpha over sqrt(r) or r
    with torch.no_grad():
        for key in [key for key in update if key.endswith("lora_A.weight")]:
            layer = oracle.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            layer.weight += scale * (update[key.replace("lora_A", "lora_B")] @ update[key]).t()
    expected = oracle(input_ids=ids).logits
    restored = peft.PeftModel.from_pretrained(make_model("gpt2"), folder).eval()
    torch.testing.assert_close(restored(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert (expected - source).norm() > 1e-3 * source.norm()
    merged = restored.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_dora_moves_from_packed_gpt2_to_16_bits_and_merges(tmp_path: Path) -> None:
    folder, ids = train_on_packed_gpt2(tmp_path, use_dora=True), make_batches()[0]["input_ids"]
    restored = peft.PeftModel.from_pretrained(make_model("gpt2"), folder).eval()
    served = restored(input_ids=ids).logits
    torch.testing.assert_close(restored.merge_and_unload()(input_ids=ids).logits, served, rtol=1e-4, atol=1e-5)
