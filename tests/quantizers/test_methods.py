"""Every method through the registry: quantize, load, agree with transformers, carry an adapter, give it away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plr.adapters import adapters
from plr.bases.load import load_quantized
from plr.quantizers import densify, quantizers

from .conftest import SPECS, logits, make_batches, make_model, need, quantized, spec_of

METHODS = list(SPECS)
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """method -> folder of its checkpoint, each made once."""
    made: dict[str, Path] = {}

    def of(method: str) -> Path:
        need(method)
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method)
            quantized(method, made[method])
        return made[method]

    return of


def load(folder: Path) -> Any:
    return load_quantized(folder, dtype=torch.float32, device="cpu")


def in_transformers(folder: Path, method: str) -> Any:
    """The checkpoint opened without plr."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    more: dict[str, Any] = {"dtype": torch.float32}
    if method not in ("nf4", "int8"):
        need("gptqmodel")
        pytest.importorskip(
            "optimum", reason="transformers opens GPTQ checkpoints with optimum: pip install plr[gptqmodel]"
        )
        more["quantization_config"] = GPTQConfig(bits=SPECS[method]["bits"], backend="gptq_torch")
    model = AutoModelForCausalLM.from_pretrained(folder, **more)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # scales in bfloat16: other numbers
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_the_checkpoint_is_the_model_that_was_quantized(method: str, tmp_path: Path) -> None:
    source = make_model()
    weights = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model, record = quantized(method, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    distance = (logits(loaded) - logits(source)).norm() / logits(source).norm()
    assert 1e-4 < distance < 0.5
    assert len(record["modules"]) == 14
    assert {module["name"] for module in record["modules"]} >= {"model.layers.0.self_attn.q_proj"}
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(stored["lm_head.weight"], weights["lm_head.weight"])
    assert not list(tmp_path.glob("tokenizer*")), "the tokenizer is the caller's to save"


@pytest.mark.parametrize("method", METHODS)
def test_the_tensors_of_the_model_are_not_written_to(method: str, tmp_path: Path) -> None:
    need(method)
    model, quantizer = make_model(), quantizers.get(method)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    before = logits(model)
    batches = make_batches() if quantizer.needs_calibration else []
    quantizer.quantize(model, batches, spec_of(method), tmp_path)
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_transformers_computes_the_same(method: str, folders: Any) -> None:
    ours, theirs = logits(load(folders(method))), logits(in_transformers(folders(method), method))
    if method in ("nf4", "int8"):
        assert torch.equal(ours, theirs)
    else:  # GPTQModel's layer multiplies scale and code in float16
        assert (ours - theirs).norm() < 1e-3 * ours.norm()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_trained_on_it_goes_onto_16_bits_and_onto_4_bit_gptq(
    method: str, folders: Any, tmp_path: Path
) -> None:
    lora = adapters.get("lora")
    model = lora.attach(load(folders(method)), lora.resolve(LORA), seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch = make_batches()[1]
    losses: list[float] = []
    for _ in range(4):
        logits(model.eval())  # training goes on after an evaluation
        model.train()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    lora.save(model, tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    plain = lora.attach(make_model(), lora.resolve(LORA), seed=0)
    lora.save(plain, tmp_path / "plain")
    assert keys == load_file(tmp_path / "plain" / "adapter_model.safetensors").keys()

    gptq = tmp_path / "gptq"
    quantized("gptq", gptq, bits=4)
    trained = logits(model.eval()) - logits(load(folders(method)))
    for base in (make_model(), load(gptq), load(folders(method))):
        before = logits(base)
        served = lora.load(base, tmp_path / "adapter", "there")
        change = logits(served) - before
        cosine = torch.nn.functional.cosine_similarity(change.flatten(), trained.flatten(), 0)
        assert cosine > 0.8  # the same dW, so nearly the same change
        assert torch.allclose(logits(lora.unload(served, "there")), before)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_trained_on_16_bits_goes_onto_it(method: str, folders: Any, tmp_path: Path) -> None:
    lora = adapters.get("lora")
    model = lora.attach(make_model(), lora.resolve({**LORA, "init_lora_weights": False}), seed=0)
    lora.save(model, tmp_path)
    base = load(folders(method))
    before = logits(base)
    assert (logits(lora.load(base, tmp_path, "there")) - before).norm() > 0.01 * before.norm()


@pytest.mark.parametrize("method", METHODS)
def test_made_dense_it_computes_the_same_and_takes_a_merge(method: str, folders: Any, tmp_path: Path) -> None:
    lora = adapters.get("lora")
    lora.save(lora.attach(make_model(), lora.resolve({**LORA, "init_lora_weights": False}), seed=0), tmp_path / "a")
    # In evaluation int8 rounds its inputs too; in training, on a CPU, it does not (and Llama has no dropout).
    rounds_inputs = method == "int8"
    k_bit = logits(load(folders(method)).train(rounds_inputs))
    side_by_side = logits(lora.load(load(folders(method)), tmp_path / "a", "there").train(rounds_inputs))
    dense = load(folders(method))
    densify(dense)
    assert all(type(m) is torch.nn.Linear for m in dense.modules() if isinstance(m, torch.nn.Linear))
    assert (logits(dense) - k_bit).norm() < 1e-5 * k_bit.norm()
    merged: Any = lora.merge(lora.load(dense, tmp_path / "a", "there"))
    assert (logits(merged) - side_by_side).norm() < 1e-5 * side_by_side.norm()
    merged.to(torch.float32).save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    reread = type(make_model()).from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    assert torch.equal(logits(reread), logits(merged))
