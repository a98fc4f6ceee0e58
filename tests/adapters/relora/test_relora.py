"""ReLoRA: the update is the sum of its pairs, merged or beside; restarts in time; a killed run ends with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from plr.adapters.relora.relora import ReLoraMethod
from plr.adapters.relora.restarts import Jagged, Restarts, reset
from plr.errors import ConfigError, ModelError, TrainingError
from plr.training.trainer import OrderedRows, PlrTrainer, latest_checkpoint

from ..conftest import small_model

IDS = torch.randint(3, 64, (8, 10), generator=torch.Generator().manual_seed(0))
METHOD = ReLoraMethod()
SMALL = {"r": 2, "lora_alpha": 4, "restarts": 2, "target_modules": ["q_proj", "down_proj"]}


def make_model(kind: str = "llama", bits: int = 16, dtype: torch.dtype = torch.float32) -> Any:
    return small_model(kind, bits, dtype=dtype).requires_grad_(False)


def attach(base: Any, kind: Any = "generation", **more: Any) -> tuple[Any, dict[str, Any]]:
    config = METHOD.resolve({**SMALL, **more})
    return METHOD.attach(base, config, seed=3, kind=kind, steps=9), config


def state_of(model: Any) -> Restarts:
    return vars(model)["plr_restarts"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def wiggle(model: Any, seed: int) -> None:
    """Pairs as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def restarted(base: Any, **more: Any) -> Any:
    model, _ = attach(base, **more)
    for seed in range(2):
        wiggle(model, seed)
        state_of(model).restart()
    wiggle(model, 2)
    return model


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("bits", [16, 4])
def test_a_restart_changes_no_logit_and_leaves_a_fresh_pair(bits: int, merge: bool) -> None:
    model, _ = attach(make_model(bits=bits), merge_into_base=merge)
    before = logits(model)
    for seed in range(2):
        wiggle(model, seed)
        trained = logits(model)
        assert not torch.allclose(trained, before, atol=1e-3)
        before = trained
        state_of(model).restart()
        torch.testing.assert_close(logits(model), trained, rtol=1e-4, atol=1e-5)
        fresh = [p for name, p in model.named_parameters() if "lora_B" in name]
        assert not any(p.any() for p in fresh)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_update_is_the_sum_of_all_pairs(kind: str) -> None:
    """The oracle adds ``2 sum B_i A_i`` to the weights of a plain model by hand."""
    targets = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    model, _ = attach(make_model(kind), target_modules=targets)
    oracle = make_model(kind)
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    for seed in range(3):
        wiggle(model, seed)
        for name, layer in layers.items():
            update = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weight = oracle.get_submodule(name.removeprefix("base_model.model.")).weight
            weight.data += update.detach() if kind == "llama" else update.detach().t()
        if seed < 2:
            state_of(model).restart()
    torch.testing.assert_close(logits(model), logits(oracle), rtol=1e-4, atol=1e-4)


def test_merged_and_beside_are_the_same_function() -> None:
    merged, beside = (restarted(make_model(), merge_into_base=merge) for merge in (True, False))
    torch.testing.assert_close(logits(merged), logits(beside), rtol=1e-4, atol=1e-5)
    changed = [p for name, p in merged.named_parameters() if "q_proj.base_layer" in name]
    kept = [p for name, p in beside.named_parameters() if "q_proj.base_layer" in name]
    assert not any(torch.allclose(a, b) for a, b in zip(changed, kept, strict=True))


@pytest.mark.parametrize("bits", [16, 3])
def test_what_is_saved_is_plain_lora_of_higher_rank_on_any_base(bits: int, tmp_path: Path) -> None:
    model = restarted(make_model(bits=bits))
    served = logits(model)
    METHOD.save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 6, 12)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {6}
    plain = peft.PeftModel.from_pretrained(make_model(bits=bits), tmp_path).eval()
    torch.testing.assert_close(logits(plain), served, rtol=1e-4, atol=1e-5)
    for other in (16, 2):
        base = make_model(bits=other)
        before = logits(base)
        restored = METHOD.load(base, tmp_path, "restored")
        assert not torch.allclose(logits(restored), before, atol=1e-2)
        assert torch.equal(logits(METHOD.unload(restored, "restored")), before)


def test_the_rank_grows_with_each_restart(tmp_path: Path) -> None:
    model, _ = attach(make_model())
    ranks = []
    for seed in range(3):
        wiggle(model, seed)
        METHOD.save(model, tmp_path)
        ranks.append(json.loads((tmp_path / "adapter_config.json").read_text())["r"])
        update = [b @ a for a, b in state_of(model).sums().values()]
        assert all(torch.linalg.matrix_rank(delta) == ranks[-1] for delta in update)
        if seed < 2:
            state_of(model).restart()
    assert ranks == [2, 4, 6]


@pytest.mark.parametrize("merge", [True, False])
def test_unload_gives_the_base_back_bit_for_bit_and_merge_keeps_the_function(merge: bool) -> None:
    before = logits(make_model())
    model = restarted(make_model(), merge_into_base=merge)
    served = logits(model)
    assert torch.equal(logits(METHOD.unload(model, "default")), before)
    model = restarted(make_model(), merge_into_base=merge)
    torch.testing.assert_close(logits(METHOD.merge(model)), served, rtol=1e-4, atol=1e-5)


def test_merging_into_codes_is_refused() -> None:
    with pytest.raises(ModelError, match="the base holds fewer than 16 bits"):
        METHOD.merge(restarted(make_model(bits=4)))


def test_a_bfloat16_base_is_rounded_once_not_at_every_restart() -> None:
    model = restarted(make_model(dtype=torch.bfloat16))
    part = next(iter(state_of(model).parts.values()))
    plain = dict(make_model(dtype=torch.bfloat16).named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(part.start, plain)
    expected = (plain.float() + 2.0 * part.b @ part.a).to(torch.bfloat16)
    assert torch.equal(part.layer.get_base_layer().weight, expected)


def test_a_classification_head_trains_and_is_saved(tmp_path: Path) -> None:
    model, _ = attach(make_model("bert"), kind="classification", target_modules=["query"])
    assert any("classifier" in name for name, p in model.named_parameters() if p.requires_grad)
    wiggle(model, 0)
    state_of(model).restart()
    METHOD.save(model, tmp_path)
    loaded = METHOD.load(make_model("bert"), tmp_path, "cell")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


# Restarts in time.


def test_restarts_stand_at_equal_distances_and_the_rate_rises_after_each() -> None:
    jagged = Jagged(None, restarts=3, warmup_fraction=0.2, reset_share=1.0)  # type: ignore[arg-type]
    assert jagged.points(40) == [10, 20, 30]
    factors = [jagged.factor(step, 40) for step in range(14)]
    assert factors[:10] == [1.0] * 10
    assert factors[10:] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_too_many_restarts_for_the_steps_are_refused() -> None:
    with pytest.raises(TrainingError, match="3 restarts were asked for in 3 optimizer steps"):
        Jagged(None, restarts=3, warmup_fraction=0.2, reset_share=1.0).points(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="restarts is 2, but there are 2 optimizer steps"):
        METHOD.attach(make_model(), METHOD.resolve(SMALL), seed=0, steps=2)


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_a_reset_keeps_the_largest_moments_in_the_same_places(share: float) -> None:
    torch.manual_seed(0)
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.randn(8, 4), "exp_avg_sq": torch.rand(8, 4)}
    before = {key: value.clone() for key, value in moments.items()}
    reset(moments, share)
    kept = moments["exp_avg"] != 0
    assert kept.sum() == round((1 - share) * 32)
    assert torch.equal(kept, moments["exp_avg_sq"] != 0)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(moments[key][kept], before[key][kept])
    if 0 < share < 1:
        assert before["exp_avg"][kept].abs().min() >= before["exp_avg"][~kept].abs().max()
    assert moments["step"] == (0 if share == 1 else 5)


def test_only_the_pairs_moments_are_reset() -> None:
    model, _ = attach(make_model("bert"), kind="classification", target_modules=["query"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values())
    model(input_ids=IDS, labels=torch.zeros(8, dtype=torch.long)).loss.backward()
    optimizer.step()
    state_of(model).restart(optimizer, 1.0)
    for name, parameter in trained.items():
        assert bool(optimizer.state[parameter]["exp_avg"].any()) != ("lora_" in name)


class Sentences:
    """An objective: next-token loss on rows of ``IDS``."""

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def collate(self, rows: list[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(rows)
        return {"input_ids": ids, "labels": ids, "shift_labels": ids}

    def loss(self, model: Any, inputs: dict[str, Any], labels: Tensor) -> tuple[Tensor, Any]:
        outputs = model(**inputs)
        flat = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        return torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum"), outputs

    def validate(self, model: Any) -> dict[str, float]:
        with torch.no_grad():
            return {"loss": float(self.loss(model, {"input_ids": IDS}, IDS)[0]) / IDS.numel()}


class At(TrainerCallback):
    """Does something when a step has ended."""

    def __init__(self, step: int, do: Callable[[Any], None]) -> None:
        self.step, self.do = step, do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.do(control)


class Save(At):
    pass


class Watch(TrainerCallback):
    """The learning rate that the optimizer used, and the one that the scheduler sees afterwards."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])


def make_trainer(model: Any, config: dict[str, Any], work: Path, *more: TrainerCallback) -> PlrTrainer:
    watch = [callback for callback in more if isinstance(callback, Watch)]
    rest = [callback for callback in more if not isinstance(callback, Watch)]
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=4, num_train_epochs=1, learning_rate=0.01, warmup_steps=2,
        lr_scheduler_type="cosine", save_strategy="no", logging_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, seed=0, log_level="error", optim="adamw_torch",
    )  # fmt: skip
    return PlrTrainer(
        model=model,
        args=arguments,
        train_dataset=OrderedRows(list(IDS), [i % 8 for i in range(36)]),  # 9 steps, restarts after 3 and 6
        callbacks=[*watch, *METHOD.callbacks(model, config), *rest],
        work=work,
        objective=Sentences(),  # type: ignore[arg-type]
        save_best=lambda path: METHOD.save(model, path),
        buffers=lambda: METHOD.buffers(model),
    )


class Killed(Exception):
    pass


def kill(control: Any) -> None:
    raise Killed


def ask_to_save(control: Any) -> None:
    control.should_save = True


@pytest.mark.parametrize(("bits", "at"), [(16, 5), (3, 3)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(bits: int, at: int, tmp_path: Path) -> None:
    model, config = attach(make_model(bits=bits))
    make_trainer(model, config, tmp_path / "whole").train()
    METHOD.save(model, tmp_path / "a")
    assert int(state_of(model).done) == 2
    model, config = attach(make_model(bits=bits))
    killed = make_trainer(model, config, tmp_path / "work", Save(at, ask_to_save), At(at + 2, kill))
    with pytest.raises(Killed):
        killed.train()
    model, config = attach(make_model(bits=bits))
    checkpoint = latest_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    assert checkpoint.endswith(f"-{at}")
    make_trainer(model, config, tmp_path / "work").train(resume_from_checkpoint=checkpoint)
    METHOD.save(model, tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_training_merged_and_beside_gives_the_same_update(tmp_path: Path) -> None:
    updates = []
    for merge in (True, False):
        model, config = attach(make_model(), merge_into_base=merge)
        before = Sentences().validate(model)["loss"]
        make_trainer(model, config, tmp_path / str(merge)).train()
        assert Sentences().validate(model)["loss"] < before
        updates.append({key: b @ a for key, (a, b) in state_of(model).sums().items()})
    for key, update in updates[0].items():
        torch.testing.assert_close(update, updates[1][key], rtol=1e-3, atol=1e-5)


def test_the_scheduler_goes_its_way_beside_the_warmups(tmp_path: Path) -> None:
    model, config = attach(make_model(), warmup_fraction=0.4)  # of 3 steps: 1
    watch = Watch()
    trainer = make_trainer(model, config, tmp_path, watch)
    trainer.train()
    torch_schedule = transformers.get_cosine_schedule_with_warmup(
        torch.optim.SGD([torch.zeros(1)], lr=0.01), num_warmup_steps=2, num_training_steps=9
    ).lr_lambdas[0]
    plain = [0.01 * torch_schedule(step) for step in range(9)]
    halved = [rate / 2 if step in (3, 6) else rate for step, rate in enumerate(plain)]
    assert watch.used == pytest.approx(halved)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    model, config = attach(make_model())
    callback = METHOD.callbacks(model, config)[0]
    at = transformers.TrainerState(global_step=5, max_steps=9)
    with pytest.raises(TrainingError, match="step 5 was made after 0 restarts"):
        callback.on_train_begin(None, at, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"restarts": 0}, "restarts is 0"),
        ({"r": 1.5}, "r is 1.5"),
        ({"reset_share": 2}, "reset_share is 2"),
        ({"warmup": 0.1}, "no key 'warmup'"),
    ],
)
def test_impossible_settings_say_what_is_possible(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        METHOD.resolve(config)
    assert caught.value.hint
    assert METHOD.resolve({"r": 4})["restarts"] == 3
