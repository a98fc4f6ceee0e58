"""AdaLoRA's schedule, penalty, checkpoint and pruned file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from plr.adapters import adapters
from plr.errors import ConfigError, ModelError

IDS = torch.arange(3, 35).view(2, 16)
CONFIG = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "target_modules": ["q_proj", "v_proj"]}
STEPS = 8
MODULES = 4


def make_model() -> Any:
    return tiny_model("llama", seed=1, vocab_size=48, intermediate_size=48)


def attached(steps: int = STEPS, **config: Any) -> tuple[Any, Any, dict[str, Any]]:
    method = adapters.get("adalora")
    resolved = method.resolve(CONFIG | config)
    return method, method.attach(make_model(), resolved, seed=0, steps=steps), resolved


def run(method: Any, model: Any, config: Any, optimizer: Any, steps: range) -> None:
    (callback,) = method.callbacks(model, config)
    for step in steps:
        model(input_ids=IDS, labels=IDS).loss.backward()
        state: Any = SimpleNamespace(global_step=step)
        callback.on_pre_optimizer_step(None, state, None)
        optimizer.step()
        callback.on_optimizer_step(None, state, None)
        optimizer.zero_grad()


def adam(model: Any) -> Any:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.parametrize(("tinit", "tfinal", "expected"), [(0.1, 0.3, (10, 30)), (5, 0, (5, 0)), (0.0, 0.5, (0, 50))])
def test_a_schedule_in_fractions_of_the_run(tinit: float, tfinal: float, expected: tuple[int, int]) -> None:
    _, model, _ = attached(100, tinit=tinit, tfinal=tfinal)
    config = model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (*expected, 100)


def test_a_run_too_short_for_its_schedule() -> None:
    with pytest.raises(ModelError, match="tinit 5 and tfinal 4 leave none of 9 steps"):
        attached(9, tinit=5, tfinal=4)


def test_ranks_must_fall() -> None:
    with pytest.raises(ConfigError, match="init_r is 4 and target_r 4"):
        adapters.get("adalora").resolve({"init_r": 4, "target_r": 4})


def test_the_number_of_steps_is_the_run_s() -> None:
    with pytest.raises(ConfigError, match="has no key 'total_step'"):
        adapters.get("adalora").resolve({"total_step": 7})


def test_the_penalty_s_gradient_is_that_of_peft_s_loss() -> None:
    """The oracle is autograd on the loss that PEFT makes when the model computes it itself."""
    _, model, config = attached(orth_reg_weight=0.3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    callback: Any = adapters.get("adalora").callbacks(model, config)[0]
    callback.on_pre_optimizer_step(None, None, None)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(before[n], expected[n]) for n in before)


def test_the_budget_is_kept_at_the_end_and_only_it_is_saved(tmp_path: Path) -> None:
    method, model, config = attached()
    run(method, model, config, adam(model), range(STEPS))
    kept = sum(int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n)
    assert kept == CONFIG["target_r"] * MODULES
    logits = model(input_ids=IDS).logits
    method.save(model, tmp_path)
    ranks = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, ranks.values())) == kept
    served = method.load(make_model(), tmp_path, "served")
    torch.testing.assert_close(served(input_ids=IDS).logits, logits, rtol=1e-5, atol=1e-6)


def test_saving_between_two_maskings_loses_nothing(tmp_path: Path) -> None:
    """With deltaT 3 a masked value grows again until the next masking: the best model may be one of those."""
    method, model, config = attached(deltaT=3)
    run(method, model, config, adam(model), range(5))
    logits = model(input_ids=IDS).logits
    method.save(model, tmp_path)
    served = method.load(make_model(), tmp_path, "served")
    torch.testing.assert_close(served(input_ids=IDS).logits, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_run_ends_with_the_same_bytes(stop: int, tmp_path: Path) -> None:
    """A checkpoint holds the trained tensors, the optimizer and the method's buffers; nothing else crosses over."""
    method, whole, config = attached()
    optimizer = adam(whole)
    run(method, whole, config, optimizer, range(stop))
    method.save(whole, tmp_path)  # saving the best so far must not change what follows
    trained = {n: p.detach().clone() for n, p in whole.named_parameters() if p.requires_grad}
    buffers = {n: t.clone() for n, t in method.buffers(whole).items()}
    moments = optimizer.state_dict()
    moments = {**moments, "state": {i: {k: v.clone() for k, v in s.items()} for i, s in moments["state"].items()}}
    run(method, whole, config, optimizer, range(stop, STEPS))

    _, resumed, _ = attached()
    second = adam(resumed)
    second.load_state_dict(moments)
    with torch.no_grad():
        for name, p in resumed.named_parameters():
            if name in trained:
                p.copy_(trained[name])
        for name, tensor in method.buffers(resumed).items():
            tensor.copy_(buffers[name])
    run(method, resumed, config, second, range(stop, STEPS))
    ends = dict(whole.named_parameters())
    assert all(torch.equal(p, ends[n]) for n, p in resumed.named_parameters() if p.requires_grad)
