"""Every method x every width: trains, saves, reloads with the same bits, is restored to every other width, merges.

One cell takes the first blocks of the embedded base at k bits (rounded to nearest, so that making it costs nothing) and a handful
of steps on one small batch. The bases are shared by all cells, so a method that leaves anything behind fails here too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from plr.adapters import adapters
from plr.adapters.known import REFUSED, peft_names
from plr.bases.load import load_source
from plr.bases.resolve import resolve_model
from plr.errors import ModelError
from plr.gptq import quantize_model
from plr.lm.support import prompt_learning
from plr.study.presets import preset
from plr.tasks.data.rows import load_split, resolve_task
from plr.training.objectives import AnswerCollator

WIDTHS = (16, 8, 4, 3, 2)
BLOCKS = 2
"""Of the embedded base's six: most of a cell's time is PEFT wrapping layers one by one."""
STEPS = 6
LORA_RATE = preset("tiny")["train"]["learning_rate"]
CONFIGS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 4},
    "adamss": {"r": 8},
    "beft": {"target_modules": ["v_proj"]},
    "bitfit": {"add_biases": True, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "cartridge": {"num_virtual_tokens": 4},
    "hira": {"r": 8},
    "trainable_tokens": {"token_indices": [*range(8)], "target_modules": ["embed_tokens"]},
    "vblora": {"vector_length": 64},
}
"""What a method needs on 128 columns, or to be quick."""
UNMERGED = {"beft", "lily"}
"""PEFT merges BEFT's biases only where there are biases, and Lily not at all."""
PLAIN_LAYERS = ("glora",)
ROUNDED = {"adalora", "p_tuning", "pissa", "relora"}
"""AdaLoRA is saved without the ranks it gave up, P-tuning without its network, PiSSA and ReLoRA as one LoRA beside an unchanged
base: the same sums in another order."""
CHANGES_THE_BASE = {"full", "pissa"}
"""In training; the base is loaded again for serving."""


class Bases:
    """The embedded base at every width, each made once and with the logits it has on its own."""

    def __init__(self) -> None:
        loaded = load_source(resolve_model("embedded:tiny"), dtype=torch.float32, device="cpu")
        rows = load_split(resolve_task("tiny_math"), "train").examples[:4]
        encode = lambda text: loaded.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        self.rows = [(encode(row.prompt), [*encode(row.target), loaded.tokenizer.eos_token_id]) for row in rows]
        self.source: Any = loaded.model
        self.source.model.layers = self.source.model.layers[:BLOCKS]
        self.source.config.num_hidden_layers = BLOCKS
        self.models: dict[int, Any] = {}
        self.own: dict[int, Tensor] = {}

    def __getitem__(self, bits: int) -> Any:
        if bits not in self.models:
            model = copy.deepcopy(self.source)
            if bits < 16:
                quantize_model(model, [], bits=bits, group_size=-1, method="rtn")
            self.models[bits] = model.eval()
            self.own.setdefault(bits, self.logits(model))
        return self.models[bits]

    def loss(self, model: Any) -> Tensor:
        """Mean cross entropy of the answers, as plr's trainer has it."""
        batch = AnswerCollator(0, position_ids=True, right=prompt_learning(model) > 0)(self.rows)
        batch.pop("shift_labels")
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[:, -labels.shape[1] - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def logits(self, model: Any) -> Tensor:
        ids = torch.tensor([self.rows[0][0]])
        return model.eval()(input_ids=ids, use_cache=False).logits[:, -8:]


@pytest.fixture(scope="module")
def bases() -> Iterator[Bases]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bases()
    torch.set_num_threads(threads)


def train(method: Any, model: Any, config: dict[str, Any], bases: Bases) -> tuple[float, float]:
    """The loss before and after STEPS steps at the method's own rate."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LORA_RATE * method.properties.learning_rate, weight_decay=0.0)
    callbacks = method.callbacks(model, config)
    losses = []
    for step in range(STEPS):
        loss = bases.loss(model.train())
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        state = SimpleNamespace(global_step=step, max_steps=STEPS)
        for event in ("on_pre_optimizer_step", "on_optimizer_step"):
            for callback in callbacks:
                getattr(callback, event)(SimpleNamespace(), state, SimpleNamespace(), model=model, optimizer=optimizer)
            if event == "on_pre_optimizer_step":
                optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        for callback in callbacks:
            callback.on_step_end(SimpleNamespace(), state, SimpleNamespace(), model=model, optimizer=optimizer)
    with torch.no_grad():
        return losses[0], bases.loss(model.eval()).item()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", adapters.names())
def test_trains_reloads_restores_and_merges(name: str, bits: int, bases: Bases, tmp_path: Path) -> None:
    cell(name, bits, bases, tmp_path)


@pytest.mark.parametrize("bits", [16, 3])
@pytest.mark.parametrize(
    "name", sorted({*peft_names()} - {*adapters.names()} - {*REFUSED} - {*PLAIN_LAYERS, "adaption_prompt"})
)
def test_so_does_any_other_method_of_peft(name: str, bits: int, bases: Bases, tmp_path: Path) -> None:
    cell(name, bits, bases, tmp_path)


@pytest.mark.parametrize("name", PLAIN_LAYERS)
def test_a_method_that_peft_puts_on_plain_layers_alone_says_so(name: str, bases: Bases, tmp_path: Path) -> None:
    method = adapters.get(name)
    config = method.resolve({})
    with pytest.raises(ModelError, match=r"cannot be attached to LlamaForCausalLM: .*not a plain torch\.nn\.Linear"):
        method.attach(copy.deepcopy(bases[4]), config, seed=0, steps=STEPS)
    model = method.attach(copy.deepcopy(bases[16]), config, seed=0, steps=STEPS)
    before, after = train(method, model, config, bases)
    assert after < before
    method.save(model, tmp_path)
    served = method.load(copy.deepcopy(bases[16]), tmp_path, "served")
    assert torch.equal(bases.logits(served), bases.logits(model))
    with pytest.raises(ModelError, match=r"cannot be put on LlamaForCausalLM: .*not a plain torch\.nn\.Linear"):
        method.load(copy.deepcopy(bases[4]), tmp_path, "served")


def cell(name: str, bits: int, bases: Bases, tmp_path: Path) -> None:
    method = adapters.get(name)
    config = method.resolve(CONFIGS.get(name, {}))
    if bits < 16 and not method.properties.quantized:
        with pytest.raises(ModelError, match="16 bits"):
            method.attach(bases[bits], config, seed=0, steps=STEPS)
        return
    try:
        walk(name, method, config, bits, bases, tmp_path)
    except BaseException:
        bases.models.clear()  # what is left of them belongs to this failure
        raise


def walk(name: str, method: Any, config: dict[str, Any], bits: int, bases: Bases, folder: Path) -> None:
    model = method.attach(bases[bits], config, seed=0, steps=STEPS)
    before, after = train(method, model, config, bases)
    assert after < before
    trained = bases.logits(model)
    method.save(model, folder)
    assert not list(folder.glob("*.bin"))
    if name in CHANGES_THE_BASE:
        del bases.models[bits]
    else:
        bases.models[bits] = method.unload(model, "default")
        assert torch.equal(bases.logits(bases.models[bits]), bases.own[bits]), "something was left behind"
    for width in WIDTHS if name != "full" else (16,):
        served = method.load(bases[width], folder, "served")
        logits = bases.logits(served)
        assert not torch.allclose(logits, bases.own[width]), f"it does nothing at {width} bits"
        if width == bits and name in ROUNDED:
            torch.testing.assert_close(logits, trained, rtol=1e-4, atol=1e-4)
        elif width == bits:
            assert torch.equal(logits, trained)
        if width == 16 and method.properties.merges and name not in UNMERGED:
            merged = method.merge(copy.deepcopy(served))
            torch.testing.assert_close(bases.logits(merged), logits, rtol=1e-3, atol=1e-3)
        elif width == 16:
            with pytest.raises(ModelError, match="cannot be merged"):
                method.merge(copy.deepcopy(served))
        bases.models[width] = method.unload(served, "served")
        assert torch.equal(bases.logits(bases.models[width]), bases.own[width]), "something was left behind"
