"""Experts in one tensor: taken apart, quantized each with its own tokens, saved, loaded and put together again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import architecture
from torch import Tensor, nn

from plr.gptq import Settings, load_checkpoint, quantize_model, save_checkpoint
from plr.gptq.errors import WalkError
from plr.gptq.experts import SeparateExperts, can_separate, every_expert, join, separate
from plr.gptq.linear import PackedLinear

FAMILIES = ["mixtral", "qwen3_moe", "qwen3_next", "deepseek_v3", "granitemoe"]
OTHERS = ["gpt_oss", "llama4_text"]
SETTINGS = Settings(bits=4, group_size=-1)


def batches(count: int = 4, length: int = 12, *, padded: bool = False) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    made: list[dict[str, Tensor]] = []
    for _ in range(count):
        ids, mask = torch.randint(3, 64, (2, length)), torch.ones(2, length, dtype=torch.long)
        if padded:
            mask[1, length // 2 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_apart_they_compute_the_same_and_go_together_again(family: str) -> None:
    model = architecture(family)
    expected, state = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    assert separate(model) > 0
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    with every_expert(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert not [m for m in model.modules() if "routed" in m.__dict__]
    join(model)
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[key], state[key]) for key in state)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", OTHERS)
def test_experts_of_another_form_are_left_as_they_are(family: str) -> None:
    model = architecture(family)
    assert separate(model) == 0
    assert any("experts" in name and p.ndim == 3 for name, p in model.named_parameters())


def test_a_module_that_only_looks_like_experts_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = (
                nn.Parameter(torch.randn(4, 16, 32)),
                nn.Parameter(torch.randn(4, 32, 8)),
            )
            self.act_fn = nn.SiLU()

        def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            return hidden

    model = nn.ModuleDict({"experts": Odd()})
    assert can_separate(model["experts"])
    with pytest.raises(WalkError, match="computes otherwise"):
        separate(model)


@pytest.mark.parametrize("padded", [False, True])
def test_each_expert_is_calibrated_on_its_own_tokens(padded: bool) -> None:
    """The tokens of the experts of a block are those of the text, each as often as it is routed; padding is none."""
    model = architecture("mixtral")
    separate(model)
    given = batches(24, padded=padded)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in given)
    reports = [r for r in quantize_model(model, given, settings=SETTINGS) if ".experts." in r.name]
    first = [r for r in reports if ".layers.0." in r.name and r.name.endswith("gate_proj")]
    assert len(first) == 4
    assert sum(r.routed or 0 for r in first) == 2 * tokens  # two experts a token
    for report in reports:
        assert report.routed is not None
        assert report.n_tokens == (report.routed if report.routed >= report.in_features else tokens)
        assert report.error is not None
        assert 0 < report.error < 1
    assert all(
        r.routed == next(o.routed for o in reports if o.name == r.name.replace("up_proj", "gate_proj")) for r in reports
    )


def test_the_hessian_is_that_of_the_routed_tokens() -> None:
    """Solved alone, on inputs that are collected by hand, an expert of the first block gets the same codes."""
    from plr.gptq import hessian
    from plr.gptq.solver import gptq_solve

    given = batches(24)
    plain = architecture("mixtral")
    separate(plain)
    attention = {name for name, _ in plain.named_modules() if ".layers.0.self_attn." in name}
    by_hand = architecture("mixtral")
    separate(by_hand)
    quantize_model(plain, given, settings=SETTINGS)
    for name in attention:  # the attention before the experts is the quantized one
        module = plain.get_submodule(name)
        if isinstance(module, PackedLinear):
            by_hand.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = module.to_dense()
    expert: Any = by_hand.model.layers[0].mlp.experts[1].gate_proj
    seen: list[Tensor] = []
    expert.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in given:
            by_hand(**batch)
    X = torch.cat(seen)
    assert len(X) >= 32
    H = hessian.empty(32, X.device)
    hessian.accumulate(H, X, 0)
    hessian.finish(H)
    found = gptq_solve(expert.weight, H, settings=SETTINGS, scale_dtype=torch.float16)
    packed: Any = plain.model.layers[0].mlp.experts[1].gate_proj
    agreement = float((packed.to_dense().weight - found.dequantize()).abs().lt(1e-3).float().mean())
    assert agreement > 0.99


def test_an_expert_that_few_tokens_reach_is_solved_on_all_of_them() -> None:
    model = architecture("mixtral")
    separate(model)
    reports = quantize_model(model, batches(1, 10), settings=SETTINGS)
    few = [r for r in reports if ".experts." in r.name]
    assert few
    assert all(r.n_tokens == 20 and r.routed is not None and r.routed < r.in_features for r in few)
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["packed", "dequantized"])
def test_a_checkpoint_is_loaded_as_it_was_saved(family: str, kernel: str, tmp_path: Path) -> None:
    model = architecture(family)
    separate(model)
    quantize_model(model, batches(), settings=SETTINGS)
    expected = logits(model)
    save_checkpoint(model, tmp_path, settings=SETTINGS)
    loaded = load_checkpoint(tmp_path, dtype=torch.float32, kernel=kernel)
    assert any(isinstance(module, SeparateExperts) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("options", [{"input_correction": 0.5}, {"low_memory": True}])
def test_what_experts_are_not_quantized_with_is_refused(options: dict[str, Any]) -> None:
    model = architecture("mixtral")
    separate(model)
    with pytest.raises(WalkError, match=f"{next(iter(options))} is asked for"):
        quantize_model(model, batches(), bits=4, group_size=-1, **options)


def test_rounding_needs_no_tokens() -> None:
    model = architecture("qwen3_moe")
    separate(model)
    quantize_model(model, [], bits=4, group_size=-1, method="rtn")
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_whole_way(family: str, tmp_path: Path) -> None:
    """Merged at 4 bits and at 16, and quantized anew: what is written computes what was served, in transformers too."""
    from architecture_table import SETTINGS as QUICK
    from architecture_table import write_case
    from transformers import AutoModelForCausalLM

    from plr.lab import Lab

    write_case(family, tmp_path)
    lab = Lab(tmp_path / "store", offline=True, dtype="float32")
    task = str(tmp_path / "words.yaml")
    adapter = lab.train(tmp_path / "model", 4, task=task, preset="paper", overrides=QUICK)

    def loss(served: Any) -> float:
        return lab.evaluate(served, limit=8).metrics["metrics"]["answer_loss"]["value"]

    merged = {16: lab.restore(adapter, 16, merge=True), 4: lab.restore(adapter, 4, mode="roundtrip")}
    for bits, served in merged.items():
        assert loss(served) == pytest.approx(loss(lab.restore(adapter, bits)), abs=1e-3)
        dense = AutoModelForCausalLM.from_pretrained(served.path, dtype=torch.float32)
        assert not any("mlp.experts.0" in key for key, _ in dense.named_parameters())
        assert logits(dense).isfinite().all()
    again = lab.restore(adapter, 4, mode="requantize")
    assert loss(again) < 20
