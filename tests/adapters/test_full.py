"""Full fine-tuning: everything trains, a whole checkpoint is saved, weights go on and come off bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from plr.adapters.full import FullMethod
from plr.errors import ConfigError, ModelError, ProvenanceError

from .conftest import small_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
METHOD = FullMethod()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train(model: Any, steps: int = 4) -> list[float]:
    labels = torch.tensor([0, 1]) if "Classification" in type(model).__name__ else IDS
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_parameter_trains_in_float32(kind: str) -> None:
    base = small_model(kind).to(torch.bfloat16).requires_grad_(False)
    kinds = {"llama": "generation", "bert": "classification"}
    model = METHOD.attach(base, {}, seed=0, kind=kinds[kind])  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert METHOD.updated_parameters(model) == sum(p.numel() for p in before.values())


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_opens_without_plr_and_goes_on_the_base_and_off_again(tied: bool, tmp_path: Path) -> None:
    model = METHOD.attach(small_model(tie_word_embeddings=tied), {}, seed=0)
    train(model)
    METHOD.save(model, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain), logits(model))
    base = small_model(tie_word_embeddings=tied)
    before, own = logits(base), {key: t.clone() for key, t in base.state_dict().items()}
    served = METHOD.load(base, tmp_path, "cell")
    assert torch.equal(logits(served), logits(model))
    assert (
        METHOD.merge(METHOD.load(small_model(tie_word_embeddings=tied), tmp_path, "cell")).config.model_type == "llama"
    )
    restored = METHOD.unload(served, "cell")
    assert torch.equal(logits(restored), before)
    assert all(torch.equal(tensor, own[key]) for key, tensor in restored.state_dict().items())
    METHOD.load(restored, tmp_path, "again")  # and once more


def test_a_head_is_saved_with_the_rest(tmp_path: Path) -> None:
    model = METHOD.attach(small_model("bert"), {}, seed=0, kind="classification")
    train(model)
    METHOD.save(model, tmp_path)
    base = small_model("bert")
    torch.nn.init.normal_(base.classifier.weight)
    assert torch.equal(logits(METHOD.load(base, tmp_path, "cell")), logits(model))


def test_a_base_keeps_its_dtype(tmp_path: Path) -> None:
    model = METHOD.attach(small_model(), {}, seed=0)
    METHOD.save(model, tmp_path)
    assert METHOD.load(small_model().to(torch.bfloat16), tmp_path, "cell").dtype == torch.bfloat16


def test_a_k_bit_base_neither_trains_nor_takes_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="on a quantized LlamaForCausalLM"):
        METHOD.attach(small_model(bits=4), {}, seed=0)
    METHOD.save(METHOD.attach(small_model(), {}, seed=0), tmp_path)
    with pytest.raises(ModelError, match="put on a k-bit base") as caught:
        METHOD.load(small_model(bits=4), tmp_path, "cell")
    assert "--mode requantize" in str(caught.value.hint)


def test_another_size_or_architecture_is_refused(tmp_path: Path) -> None:
    METHOD.save(METHOD.attach(small_model(), {}, seed=0), tmp_path / "llama")
    with pytest.raises(ProvenanceError, match=r"has shape \[64, 32\] as lm_head\.weight"):
        METHOD.load(small_model(hidden_size=64), tmp_path / "llama", "cell")
    METHOD.save(METHOD.attach(small_model("bert"), {}, seed=0), tmp_path / "bert")
    with pytest.raises(ProvenanceError, match="no whole checkpoint of LlamaForCausalLM"):
        METHOD.load(small_model(), tmp_path / "bert", "cell")


def test_two_sets_of_weights_do_not_go_on_one_base(tmp_path: Path) -> None:
    METHOD.save(METHOD.attach(small_model(), {}, seed=0), tmp_path)
    base = METHOD.load(small_model(), tmp_path, "cell")
    with pytest.raises(ModelError, match="a base that carries cell"):
        METHOD.load(base, tmp_path, "other")
    with pytest.raises(ModelError, match="under the name 'other'"):
        METHOD.unload(base, "other")


def test_there_is_nothing_to_configure() -> None:
    assert METHOD.resolve({}) == {}
    with pytest.raises(ConfigError, match="has no key 'r'"):
        METHOD.resolve({"r": 8})
