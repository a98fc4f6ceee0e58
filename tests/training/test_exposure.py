"""Trainings that see more than the k-bit base: a frozen correction, the way to the source, several quantizations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from weights import dense_weights, lora_change, written_weights

from plr.bases.load import load_base
from plr.core.runtime import Runtime
from plr.core.specs import Quantize, Restore, Train
from plr.errors import ConfigError, UsageError
from plr.lab import Lab
from plr.quantizers import densify
from plr.quantizers.base import named_modules
from plr.restoration.compensation import COMPENSATION, compensated, compensation_in, sum_of
from plr.restoration.line import k_bit_layers
from plr.restoration.lowrank import matrix_of
from plr.restoration.rows import training_inputs
from plr.study.advise import served_bytes
from plr.training.exposure import Mixing, Rotation

SHORT = ["train.train_limit=64", "train.batch_size=16", "train.learning_rate=0.002", "train.validation_limit=8"]
BASE = ["quantize.samples=8", *SHORT]


def fill(*overrides: str, method: str = "lora") -> dict[str, Any]:
    return {"preset": "tiny", "task": "tiny_math", "adapter": method, "overrides": [*BASE, *overrides]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("store"), offline=True, dtype="float32")


@pytest.fixture(scope="module")
def beside(lab: Lab) -> Train:
    step = lab.adapter("embedded:tiny", 2, **fill("train.compensate=8"))
    lab.make(step)
    return step


def test_the_compensation_is_the_leading_part_of_what_quantization_took(lab: Lab, beside: Train) -> None:
    artifact = lab.store.require(beside)
    factors = compensation_in(artifact.path)
    low, high = dense_weights(lab, beside.base), dense_weights(lab, beside.base.source)
    assert len(factors) == 42
    for name, (left, right) in factors.items():
        error = high[f"{name}.weight"] - low[f"{name}.weight"]
        assert torch.allclose(left.T @ left, torch.eye(8), atol=1e-4)
        assert torch.allclose(left.T @ error, right, atol=1e-4)
    record = artifact.metrics["compensation"]
    sizes = [(left.shape[0], right.shape[1]) for left, right in factors.values()]
    expected = 16 * 8 * sum(a + b for a, b in sizes) / sum(a * b for a, b in sizes)
    assert record["bits_a_weight"] == pytest.approx(expected)
    assert 0.3 < record["taken_back"] < 1


def test_hooks_compute_with_the_sum(lab: Lab, beside: Train) -> None:
    """The model that was trained is W_k + C: hooks against weights added up, gradients of the input included."""
    factors = compensation_in(lab.store.require(beside).path)
    loaded: Any = load_base(beside.base, lab.store, Runtime(dtype="float32"))
    added: Any = load_base(beside.base, lab.store, Runtime(dtype="float32")).model
    densify(added)
    for name, layer in named_modules(added):
        if name in factors:
            layer.weight.data += sum_of(factors, name, layer.weight.data)
    ids = torch.tensor([[5, 9, 17, 33]])
    layers = k_bit_layers(dict(named_modules(loaded.model)))
    grads = []
    with compensated(layers, factors):
        for model in (loaded.model, added):
            x = model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model(inputs_embeds=x).logits
            logits.square().mean().backward()
            grads.append((logits, x.grad))
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-4)
    assert torch.allclose(grads[0][1], grads[1][1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(loaded.model(input_ids=ids).logits, grads[1][0], atol=1e-2)  # off again


def test_training_saw_it_and_its_own_base_serves_it(lab: Lab, beside: Train) -> None:
    """The best validation loss of the training is that of what `keep` writes, read with PEFT alone, and of no other."""
    from plr.restoration.rows import validation_rows

    artifact = lab.store.require(beside)
    kept = lab.restored(beside, 2)
    assert kept.made
    restored = lab.make(kept)
    low = dense_weights(lab, beside.base)
    factors, own, whole = compensation_in(artifact.path), lora_change(artifact.path), lora_change(restored.path)
    for name, change in whole.items():
        expected = own.get(name, torch.zeros_like(low[name])) + sum_of(factors, name.removesuffix(".weight"), low[name])
        assert torch.allclose(change, expected, atol=1e-5), name
    assert not (restored.path / COMPENSATION).exists()
    step = lab.result(kept, limit=8)
    assert step.inputs == (kept,)
    assert len(validation_rows(beside.task, 8, 0).examples) == 8
    without = lab.make(lab.result(lab.restored(beside, 16), limit=8))  # dropped
    assert (
        without.metrics["metrics"]["answer_loss"]["value"] != lab.make(step).metrics["metrics"]["answer_loss"]["value"]
    )


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_the_path_begins_at_the_sum(lab: Lab, beside: Train, t: float) -> None:
    artifact = lab.store.require(beside)
    low, high, own = dense_weights(lab, beside.base), dense_weights(lab, beside.base.source), lora_change(artifact.path)
    factors = compensation_in(artifact.path)
    found = written_weights(lab.restore(beside, 16, mode="path", t=t, scale=1.0).path)
    for name, weight in found.items():
        start = low[name] + (
            sum_of(factors, name.removesuffix(".weight"), low[name]) if name.endswith("proj.weight") else 0
        )
        whole = torch.lerp(start, high[name], t) + own.get(name, torch.zeros(()))
        assert torch.allclose(weight, whole, rtol=2**-8, atol=1e-5), name


def test_the_dense_form_of_keeping_has_it(lab: Lab, beside: Train) -> None:
    ours = written_weights(lab.restore(beside, 2, mode="roundtrip").path)
    point = written_weights(lab.restore(beside, 16, mode="path", t=0.0, scale=1.0).path)
    assert all(torch.allclose(ours[name], point[name], rtol=2**-7, atol=1e-5) for name in ours)


def test_the_guard_weighs_it_with_its_compensation(lab: Lab, beside: Train) -> None:
    restored = lab.restore(beside, 16, mode="auto", correct=4, select_rows=40)
    keep = restored.metrics["candidates"][0]
    assert keep["mode"] == "keep"
    point = lab.restore(beside, 16, mode="path", t=0.0, select_rows=40).metrics["curve"][0]
    assert point["loss"] != keep["loss"]  # other rows
    below = lab.restore(beside, 4, mode="auto", correct=4, select_rows=40)
    if below.metrics["serves"] == "keep":
        served_as, own = lora_change(below.path), lora_change(lab.restore(beside, 2).path)
        assert all(torch.allclose(served_as[name], own[name]) for name in own)
    assert lab.make(lab.result(below, limit=4)).metrics["n"] == 4


def test_a_factor_beside_a_compensation_is_refused(lab: Lab, beside: Train) -> None:
    with pytest.raises(UsageError, match="beside a compensation"):
        lab.restored(beside, 2, scale=1.5)
    weak = lab.restore(
        lab.adapter("embedded:tiny", 2, **fill()), 2, scale=1.5
    )  # without one it is the control of a factor
    assert weak.metrics["scale"] == 1.5


def test_what_is_dropped_is_counted_nowhere(lab: Lab, beside: Train) -> None:
    """The size of a restored adapter is that of its own file; where it is kept, that of both."""
    artifact = lab.store.require(beside)
    own = (artifact.path / "adapter_model.safetensors").stat().st_size
    assert artifact.metrics["adapter_bytes"] == own
    restored, kept = lab.restored(beside, 16), lab.restored(beside, 2)
    bare, whole = (lab.restored(lab.adapter("embedded:tiny", 2, **fill()), bits) for bits in (16, 2))
    lab.make_all([restored, kept, bare, whole])
    assert served_bytes(restored, lab.store) == served_bytes(bare, lab.store)
    both, alone = served_bytes(kept, lab.store), served_bytes(whole, lab.store)
    assert both is not None
    assert alone is not None
    assert both - alone == (lab.store.require(kept).path / "adapter_model.safetensors").stat().st_size - own


def test_mixing_draws_the_same_places_for_the_same_step(lab: Lab) -> None:
    base = lab.base("embedded:tiny", 2, preset="tiny", task="tiny_math", overrides=["quantize.samples=8"])
    lab.make(base)
    loaded: Any = load_base(base, lab.store, Runtime(dtype="float32"))
    source: Any = load_base(base.source, lab.store, Runtime(dtype="float32"))
    layers = k_bit_layers(dict(named_modules(loaded.model)))
    modules = dict(named_modules(source.model))
    mixing = Mixing(layers, {name: modules[name] for name in layers}, 3)
    mixing.draw(5)
    first = dict(mixing.places)
    mixing.draw(6)
    assert mixing.places != first
    mixing.draw(5)
    assert mixing.places == first
    assert len(set(first.values())) == len(first)
    row = training_inputs(lab.resolver.task("tiny_math"), 1, 0, loaded.tokenizer)[0]
    with mixing.hooked(), torch.no_grad():
        loaded.model.eval()
        assert torch.allclose(loaded.model(**row).logits, source.model(**row).logits, atol=1e-3)  # W_16 in validation
        loaded.model.train()
        mixed = loaded.model(**row).logits
    low, high = dense_weights(lab, base), dense_weights(lab, base.source)
    added: Any = load_base(base.source, lab.store, Runtime(dtype="float32")).model
    with torch.no_grad():
        for name, place in first.items():
            added.get_submodule(name).weight.copy_(torch.lerp(low[f"{name}.weight"], high[f"{name}.weight"], place))
        assert torch.allclose(added(**row).logits, mixed, atol=1e-3)
    assert matrix_of(layers[next(iter(layers))]).dtype == torch.float32


def test_a_mixed_training_is_another_adapter_and_ends(lab: Lab) -> None:
    plain, mixed = (lab.adapter("embedded:tiny", 2, **fill(*more)) for more in ((), ("train.mix=true",)))
    assert plain.fingerprint != mixed.fingerprint
    first, second = lab.make(plain), lab.make(mixed)
    assert first.metrics["best"]["validation_loss"] != second.metrics["best"]["validation_loss"]
    assert lab.restore(mixed, 16).metrics["largest_logit_change"] > 0


def test_bases_in_turn_have_other_codes_and_the_adapter_its_own_base(lab: Lab) -> None:
    step = lab.adapter("embedded:tiny", 2, **fill("train.rotate=3", "train.rotate_every=1"))
    assert len({base.fingerprint for base in step.bases}) == 3
    assert step.bases[0] == step.base
    assert step.inputs == step.bases
    grids = [base.quantization.grid for base in step.bases if isinstance(base, Quantize)]
    assert len(set(grids)) == 3
    artifact = lab.make(step)
    assert artifact.metrics["steps"] >= 4
    restored = lab.restored(step, 2)
    assert isinstance(restored, Restore)
    assert restored.base == step.base


def test_turning_loads_the_codes_of_another_base_and_back(lab: Lab) -> None:
    step = lab.adapter("embedded:tiny", 2, **fill("train.rotate=2"))
    lab.make_all(list(step.bases))
    loaded: Any = load_base(step.base, lab.store, Runtime(dtype="float32"))
    other: Any = load_base(step.bases[1], lab.store, Runtime(dtype="float32"))
    layers = k_bit_layers(dict(named_modules(loaded.model)))
    rotation = Rotation(layers, [lab.store.require(base).path for base in step.bases], 1)
    ids = torch.tensor([[5, 9, 17, 33]])
    with torch.no_grad():
        before, theirs = loaded.model(input_ids=ids).logits, other.model(input_ids=ids).logits
        assert not torch.allclose(before, theirs)
        rotation.turn(1)
        assert torch.equal(loaded.model(input_ids=ids).logits, theirs)
        seen: list[torch.Tensor] = []
        mean = rotation.validating(lambda model: seen.append(model(input_ids=ids).logits) or {"loss": float(len(seen))})
        assert mean(loaded.model) == {"loss": 1.5}
        assert torch.equal(seen[0], before)
        assert torch.equal(seen[1], theirs)
        assert torch.equal(loaded.model(input_ids=ids).logits, theirs)


def test_they_exclude_each_other_and_say_what_they_need(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        lab.adapter("embedded:tiny", 2, **fill("train.mix=true", "train.compensate=4"))
    with pytest.raises(UsageError, match=r"train\.compensate with an adapter of dora"):
        lab.adapter("embedded:tiny", 2, **fill("train.compensate=4", method="dora"))
    with pytest.raises(UsageError, match=r"train\.rotate"):
        lab.adapter("embedded:tiny", 2, **fill("train.rotate=2", "quantize.method=rtn"))
    at_16 = lab.adapter("embedded:tiny", 16, **fill("train.compensate=4"))
    assert at_16 == lab.adapter("embedded:tiny", 16, **fill())
