"""A quantizer with layers and a checkpoint format of its own, all of it in this file: nothing else in plr knows its name."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, save_tiny
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import plr.quantizers
from plr.adapters.peft import is_quantized
from plr.bases.load import load_base, load_quantized
from plr.bases.quantize import SourceHolder
from plr.core.specs import Evaluate, Quantize, Restore
from plr.errors import ModelError, UsageError
from plr.lab import Lab
from plr.quantizers import Quantizer, is_quantized_layer, methods_help, quantizers, reader_of
from plr.tasks.data.rows import head_of


class ToyLinear(nn.Linear):
    """`y = s (C x) + b`: codes int8 [out, in] and a scale a row, [out, 1]."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = bias

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.scale * self.codes.to(self.scale.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Toy(Quantizer):
    """Rounding to 2^bits - 1 levels a row, kept in `codes.safetensors`."""

    needs_calibration = False
    widths = (8, 4)
    encoders = False
    formats = ("toy",)

    def quantize(
        self, model: Any, batches: Any, spec: Any, folder: Path, *, execution: Any = None, on_progress: Any = None
    ) -> dict[str, Any]:
        from plr.gptq.blocks import dense_weight, find_targets, replace_module

        tensors: dict[str, Tensor] = {}
        targets = find_targets(model, ("lm_head",))
        for name, linear in targets.items():
            weight = dense_weight(linear).detach().float()
            scale = weight.abs().amax(1, keepdim=True) / (2 ** (spec.bits - 1) - 1)
            tensors[f"{name}.codes"], tensors[f"{name}.scale"] = (weight / scale).round().to(torch.int8), scale
            replace_module(model, name, ToyLinear(tensors[f"{name}.codes"], scale, linear.bias))
        rest = {
            key: value for key, value in model.state_dict().items() if key not in tensors and key != "lm_head.weight"
        }
        config = model.config.to_dict() | {"quantization_config": {"quant_method": "toy"}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "codes.safetensors")
        save_file({key: value.contiguous() for key, value in rest.items()}, folder / "rest.safetensors")
        return {"modules": [{"name": name, "bits": spec.bits} for name in targets]}

    def load(self, folder: Path, *, dtype: torch.dtype, device: str, kernel: str) -> Any:
        from plr.gptq.blocks import replace_module

        config: Any = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(load_file(folder / "rest.safetensors"), strict=False)
        model.tie_weights()
        tensors = load_file(folder / "codes.safetensors")
        for name in [key.removesuffix(".codes") for key in tensors if key.endswith(".codes")]:
            bias = model.get_submodule(name).bias
            replace_module(model, name, ToyLinear(tensors[f"{name}.codes"], tensors[f"{name}.scale"], bias))
        return model.to(device, dtype).eval()

    def is_layer(self, module: nn.Module) -> bool:
        return isinstance(module, ToyLinear)

    def dense(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, ToyLinear)
        layer = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        layer.weight = nn.Parameter(module.weight.detach().float(), requires_grad=False)
        if module.bias is not None:
            layer.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
        return layer


SMALL = (
    "quantize.method=toy",
    "train.train_limit=16",
    "train.batch_size=8",
    "train.validation_limit=4",
    "train.learning_rate=0.001",
    "evaluate.limit=2",
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy = Toy()
    monkeypatch.setitem(quantizers._items, "toy", toy)
    return toy


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "home", offline=True, dtype="float32", device="cpu")


def test_it_is_quantized_loaded_trained_on_restored_and_scored(lab: Lab, tmp_path: Path) -> None:
    base = lab.quantize(bits=4, overrides=SMALL)
    assert base.metrics["gate"]["verdict"] not in ("broken", "damaged")
    loaded: Any = load_quantized(base.path, dtype=torch.float32, device="cpu")
    coded = [module for module in loaded.modules() if is_quantized_layer(module)]
    assert {type(module) for module in coded} == {ToyLinear}
    assert len(coded) == len(base.metrics["modules"])
    assert is_quantized(loaded)

    adapter = lab.train(bits=4, overrides=SMALL)
    curve = [point["eval_loss"] for point in adapter.metrics["curve"] if "eval_loss" in point]
    assert curve[-1] < curve[0]
    on_16 = lab.restore(adapter, bits=16)
    roundtrip = lab.restore(adapter, bits=4, mode="roundtrip")
    assert roundtrip.metrics["largest_merge_difference"] < 0.1  # saved in the 16 bits of the source
    requantized = lab.restore(adapter, bits=4, mode="requantize")
    on_8 = lab.restore(adapter, bits=8)
    counts: set[int] = set()
    for target in (base, adapter, on_16, roundtrip, requantized, on_8):
        result = lab.evaluate(target, task="tiny_math", limit=2)
        assert result.metrics["n"] == 2
        (file,) = result.path.glob("results_*.json")
        if target in (base, roundtrip, requantized):  # the others have the adapter's weights beside them
            counts.add(json.loads(file.read_text())["config"]["model_num_parameters"])
    assert len(counts) == 1, "codes count one by one, as the weights they stand for"


def test_what_it_does_not_make_is_refused_before_any_work(lab: Lab) -> None:
    with pytest.raises(UsageError, match="toy cannot carry out bits 3\n  expected: bits 8 or 4"):
        lab.base(bits=3, overrides=SMALL)


def test_a_decoder_of_it_carries_a_head_and_an_encoder_is_refused_as_declared(
    lab: Lab, tmp_path: Path, registered: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = labelled(tmp_path / "data")
    options: dict[str, Any] = {"task": "text_classification", "data": data}
    few = (*SMALL, "train.epochs=1")
    adapter = lab.train("embedded:tiny", 4, overrides=few, **options)
    assert lab.evaluate(lab.restored(adapter, 16), limit=4).metrics["n"] == 4
    result = lab.evaluate(adapter, limit=4)
    step = result.step
    assert isinstance(step, Evaluate)
    assert isinstance(step.target, Restore)
    judge = load_base(step.base, lab.store, lab.runtime(), head=head_of(step.task)).model
    assert sum(isinstance(module, ToyLinear) for module in judge.base_model.modules()) == len(
        lab.store.require(step.base).metrics["modules"]
    )

    encoder = str(save_tiny("bert", tmp_path / "bert"))
    step = lab.base(encoder, 4, overrides=few, **options)
    assert isinstance(step, Quantize)
    message = "method toy is for language models, and bert is an encoder\n  expected: one of gptq, rtn"
    with pytest.raises(ModelError, match=message):
        SourceHolder(lab.runtime()).quantize(step, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    monkeypatch.setattr(registered, "encoders", True)
    SourceHolder(lab.runtime()).quantize(step, tmp_path / "declared")
    assert (tmp_path / "declared" / "codes.safetensors").is_file()


def test_it_is_named_where_methods_are(tmp_path: Path) -> None:
    assert methods_help() == "gptq, gptqmodel, int8 (8 bits), nf4 (4 bits), rtn, toy (8 or 4 bits)"
    assert reader_of({"quant_method": "toy"}) is quantizers.get("toy")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "aqlm"}}')
    with pytest.raises(
        ModelError,
        match="is quantized by aqlm\n  expected: quant_method awq or bitsandbytes or compressed-tensors or gptq or toy",
    ):
        load_quantized(tmp_path, dtype=torch.float32, device="cpu")


def test_a_file_among_plrs_own_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(
        "from plr.quantizers.base import quantizers\n"
        "from plr.quantizers.gptq import GPTQQuantizer\n"
        "quantizers.register('planted')(GPTQQuantizer('rtn'))\n"
    )
    monkeypatch.setattr(plr.quantizers, "__path__", [*plr.quantizers.__path__, str(tmp_path)])
    monkeypatch.setattr(quantizers, "_items", dict(quantizers._items))
    try:
        plr.quantizers._discover()
        assert "planted" in quantizers.names()
    finally:
        sys.modules.pop("plr.quantizers.planted", None)
        plr.quantizers.__dict__.pop("planted", None)


def test_one_that_writes_a_format_of_another_says_nothing_more() -> None:
    """The protocol of before: `needs_calibration` and `quantize`."""

    class Old(Quantizer):
        needs_calibration = False

        def quantize(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {}

    old = Old()
    assert old.encoders
    assert not old.reads({"quant_method": "gptq"})
    assert not old.reads({})
    assert not old.is_layer(nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0]
    old.densify(model)  # pyright: ignore[reportArgumentType]
    assert model[0] is before


def labelled(folder: Path) -> str:
    folder.mkdir()
    rng = random.Random(0)
    for name, count in (("train", 32), ("validation", 8), ("test", 8)):
        rows = [f"{' '.join([*rng.sample(WORDS[:40], 4), WORDS[40 + i % 2]])}\t{i % 2}\n" for i in range(count)]
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(rows))
    return str(folder)
