"""Quantized checkpoints of other tools as bases: their bits, their source, the same logits as their own loaders give."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from given import by_peft, float32_base, logits, quantized_by, save_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPTQConfig

from plr import Lab
from plr.bases.given_bases import check_inputs, check_origin, resolve_base
from plr.bases.load import load_base
from plr.core.runtime import Runtime
from plr.core.specs import GivenBase, ModelRef, Quantize, Restore, Source
from plr.embedded import tiny_path
from plr.errors import IntegrityError, ModelError, PlrError, ProvenanceError, UsageError
from plr.gptq import load_checkpoint
from plr.quantizers import densify
from plr.restoration.attach import attach


@pytest.fixture
def lab(home: Path) -> Lab:
    return Lab(home, dtype="float32", device="cpu", offline=True)


def gptq(lab: Lab, folder: Path, bits: int = 4, **knobs: Any) -> Path:
    """Copy a GPTQ checkpoint out of the store, as it would lie on the hub."""
    overrides = [f"quantize.{key}={json.dumps(value)}" for key, value in knobs.items()]
    made = lab.quantize(bits=bits, task="tiny_math", samples=8, overrides=overrides)
    shutil.copytree(made.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
    AutoTokenizer.from_pretrained(tiny_path()).save_pretrained(folder)
    return folder


def loaded(base: Any, lab: Lab) -> Any:
    return load_base(base, lab.store, Runtime(home=lab.store.home, dtype="float32", device="cpu"))


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("bits", "knobs"),
    [
        (2, {"group_size": 32}),
        (3, {"group_size": 32}),
        (4, {"group_size": 32}),
        (8, {"group_size": -1}),
        (4, {"group_size": 32, "sym": False}),
        (4, {"group_size": 32, "desc_act": True}),
        (4, {"group_size": 32, "desc_act": True, "static_groups": True}),
    ],
)
def test_a_gptq_checkpoint(lab: Lab, tmp_path: Path, bits: int, knobs: dict[str, Any]) -> None:
    folder = gptq(lab, tmp_path / "theirs", bits, **knobs)
    base = resolve_base(str(folder), source="embedded:tiny", offline=True)
    assert isinstance(base, GivenBase)
    assert (base.bits, base.method, base.setting["sym"]) == (bits, "gptq", knobs.get("sym", True))
    expected = logits(load_checkpoint(folder, dtype=torch.float32))
    torch.testing.assert_close(logits(loaded(base, lab).model), expected, atol=0, rtol=0)
    assert not torch.allclose(expected, logits(loaded(Source(model=base.model), lab).model))


@pytest.mark.parametrize("bits", [4, 8])
def test_it_computes_what_gptqmodel_computes(lab: Lab, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("optimum", reason="optimum is not installed: pip install plr[gptqmodel]")
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: pip install plr[gptqmodel]")
    folder = gptq(lab, tmp_path / "theirs", bits, group_size=32)
    base = resolve_base(str(folder), offline=True)
    setting = GPTQConfig(bits=bits, backend="gptq_torch")
    theirs = logits(AutoModelForCausalLM.from_pretrained(folder, quantization_config=setting, dtype=torch.float32))
    # GPTQModel multiplies scale and code in float16: each weight is rounded to 11 bits, 5e-4 relative at most.
    assert (theirs - logits(loaded(base, lab).model)).norm() < 1e-3 * theirs.norm()


def test_the_second_version_of_the_format_and_shards(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    expected = logits(load_checkpoint(folder, dtype=torch.float32))
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(".qzeros"):  # the first version stores zero points less one, in each code of a word
            tensors[name] = tensor + int("1" * 8, 16)
    names = sorted(tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    change(folder, quantization_config=config["quantization_config"] | {"checkpoint_format": "gptq_v2"})
    (folder / "quantize_config.json").unlink()
    base = resolve_base(str(folder), source="embedded:tiny", offline=True)
    torch.testing.assert_close(logits(loaded(base, lab).model), expected, atol=0, rtol=0)


def test_the_files_of_autogptq(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    expected = logits(load_checkpoint(folder, dtype=torch.float32))
    config = json.loads((folder / "config.json").read_text())
    setting = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    old = {key: setting[key] for key in ("bits", "group_size", "damp_percent", "desc_act", "sym") if key in setting}
    (folder / "quantize_config.json").write_text(json.dumps(old | {"model_file_base_name": "gptq_model-4bit-32g"}))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    base = resolve_base(str(folder), source="embedded:tiny", offline=True)
    assert isinstance(base, GivenBase)
    assert base.bits == 4
    torch.testing.assert_close(logits(loaded(base, lab).model), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("bits", "setting"),
    [
        (4, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}),
        (4, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        (8, {"load_in_8bit": True}),
    ],
)
def test_a_bitsandbytes_checkpoint(lab: Lab, tmp_path: Path, bits: int, setting: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install plr[bitsandbytes]")
    source = float32_base(tmp_path / "source")
    quantized = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(**setting), dtype=torch.float32
    )
    folder = tmp_path / "theirs"
    quantized.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    base = resolve_base(str(folder), source=str(source), offline=True)
    assert isinstance(base, GivenBase)
    assert (base.bits, base.method) == (bits, "bitsandbytes")
    found = logits(loaded(base, lab).model)
    # On some CPUs bitsandbytes multiplies 4-bit codes in bfloat16; its own dequantized weights are what they stand for.
    if bits == 4:
        densify(quantized)
    torch.testing.assert_close(found, logits(quantized.eval()), atol=1e-3, rtol=1e-3)


def test_trained_on_as_it_is_and_restored_to_its_source(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    quick = ["train.epochs=1", "train.train_limit=16", "train.validation_limit=8"]
    step = lab.adapter(folder, task="tiny_math", overrides=quick)
    assert isinstance(step.base, GivenBase)
    assert (
        step.fingerprint == lab.adapter(folder, task="tiny_math", source="embedded:tiny", overrides=quick).fingerprint
    )
    adapter = lab.make(step)
    assert [one.kind for one in lab.store.all()] == ["base", "adapter"]  # its 4 bits were not quantized again
    assert adapter.metrics["train_bits"] == 4
    own = lab.evaluate(adapter, limit=4, max_new_tokens=4)
    assert (own.metrics["train_bits"], own.metrics["restore_bits"]) == (4, 4)
    with pytest.raises(UsageError, match="is not known"):
        lab.restored(adapter, 16)
    served = lab.restored(adapter, 16, model="embedded:tiny")
    assert served.mode == "restore"
    assert lab.make(served).metrics["largest_logit_change"] > 0
    assert lab.restored(adapter, 4, model="embedded:tiny").mode == "keep"
    other = lab.restored(adapter, 8, model="embedded:tiny")
    assert isinstance(other.base, Quantize)
    shutil.copytree(tiny_path(), tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file(
        {key: value * 1.5 for key, value in weights.items()}, tmp_path / "other" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ProvenanceError, match="was not made from"):
        lab.restored(adapter, 16, model=tmp_path / "other")


def test_as_the_base_that_is_restored_to(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    adapter = save_adapter(tmp_path / "adapter")
    step = lab.restored(adapter, base=folder, model="embedded:tiny")
    assert isinstance(step.base, GivenBase)
    assert step.mode == "restore"
    served = lab.make(step)
    assert json.loads((served.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.raises(UsageError, match="has 4 bits, and --bits is 8"):
        lab.restored(adapter, 8, base=folder, model="embedded:tiny")
    with pytest.raises(UsageError, match="quantizes anew"):
        lab.restored(adapter, base=folder, model="embedded:tiny", mode="requantize")
    own = lab.restored(adapter, 4, trained_on=folder, model="embedded:tiny", mode="roundtrip", merge=False)
    dense = lab.make(own)
    found = logits(AutoModelForCausalLM.from_pretrained(dense.path, dtype=torch.float32))
    assert isinstance(own, Restore)
    kept = lab.make(lab.restored(adapter, 4, trained_on=folder, model="embedded:tiny"))
    assert kept.metrics["mode"] == "keep"
    assert torch.isfinite(found).all()


def test_a_base_that_a_store_holds_is_what_was_committed(lab: Lab, tmp_path: Path) -> None:
    made = lab.quantize(bits=4, task="tiny_math", samples=8, overrides=["quantize.group_size=32"])
    assert isinstance(resolve_base(str(made.path), offline=True), GivenBase)
    shutil.copytree(made.path, tmp_path / ".partial-0123456789ab", ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(UsageError, match="never committed"):
        resolve_base(str(tmp_path / ".partial-0123456789ab"), offline=True)
    shutil.copytree(made.path, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors was altered"):
        lab.adapter(tmp_path / "copy", task="tiny_math")


def test_merged_and_quantized_anew_for_an_adapter_of_its_own(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    adapter = save_adapter(tmp_path / "adapter")
    step = lab.restored(adapter, 4, trained_on=folder, model="embedded:tiny", mode="requantize", task="tiny_math")
    assert isinstance(step.base, Quantize)


def test_scored_by_its_folder_as_a_model_is(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    result = lab.evaluate(str(folder), "tiny_math", limit=4, max_new_tokens=4)
    assert (result.metrics["train_bits"], result.metrics["restore_bits"]) == (4, 4)
    shutil.copytree(tiny_path(), tmp_path / "model")
    plain = lab.evaluate(str(tmp_path / "model"), "tiny_math", limit=4, max_new_tokens=4)
    assert plain.metrics["restore_bits"] == 16
    assert (
        lab.evaluate("embedded:tiny", "tiny_math", limit=4, max_new_tokens=4).metrics["metrics"]
        == plain.metrics["metrics"]
    )


def test_what_is_quantized_is_no_source(lab: Lab, tmp_path: Path) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    with pytest.raises(UsageError, match="quantized already"):
        lab.base(str(folder), 3, task="tiny_math")
    with pytest.raises(UsageError, match="--bits is 3"):
        lab.adapter(str(folder), 3, task="tiny_math")
    with pytest.raises(UsageError, match="is quantized itself"):
        resolve_base(str(folder), source=str(folder), offline=True)
    with pytest.raises(UsageError, match="which is not quantized"):
        resolve_base("embedded:tiny", source="embedded:tiny", offline=True)


@pytest.mark.parametrize("where", ["config", "card", "card list"])
def test_the_source_that_a_checkpoint_names(lab: Lab, tmp_path: Path, where: str) -> None:
    folder = gptq(lab, tmp_path / "theirs", group_size=32)
    shutil.copytree(tiny_path(), tmp_path / "source")
    name = str(tmp_path / "source")
    match where:
        case "config":
            change(folder, _name_or_path=name)
        case "card":
            (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: {name}\n---\n# A model\n")
        case _:
            (folder / "README.md").write_text(f"---\nbase_model:\n  - {name}\n---\n")
    base = resolve_base(str(folder), offline=True)
    assert isinstance(base, GivenBase)
    assert base.origin is not None
    assert base.origin.path == name
    assert check_origin(base)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"quant_method": "fp8"}, "quantized by fp8, which plr does not read"),
        ({"quant_method": "gptq", "bits": 5}, "to 5 bits"),
        ({"quant_method": "gptq"}, "to None bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:x": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "bitsandbytes"}, "to None bits"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "layout of a of the compressed-tensors checkpoint is None",
        ),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout of the AWQ checkpoint is gemv"),
        ({"quant_method": "awq", "bits": 8}, "AWQ checkpoint has 8 bits"),
        ({"quant_method": "hqq"}, "zero points are fractions"),
        ([4], "object of settings|is \\[4\\]"),
    ],
)
def test_what_is_not_read_is_refused_before_any_work(lab: Lab, tmp_path: Path, setting: Any, words: str) -> None:
    shutil.copytree(tiny_path(), tmp_path / "theirs")
    change(tmp_path / "theirs", quantization_config=setting)
    with pytest.raises((ModelError, PlrError), match=words):
        lab.adapter(tmp_path / "theirs", task="tiny_math")


FOREIGN = [
    ("awq", {"sym": False}),
    ("compressed-tensors", {}),
    ("compressed-tensors", {"bits": 8, "strategy": "channel"}),
]


@pytest.mark.parametrize(("method", "knobs"), FOREIGN)
def test_awq_and_compressed_tensors_as_the_base_that_is_restored_to(
    lab: Lab, tmp_path: Path, method: str, knobs: dict[str, Any]
) -> None:
    folder, dense = quantized_by(tmp_path / "theirs", method, **knobs)
    base = resolve_base(str(folder), source="embedded:tiny", offline=True)
    assert isinstance(base, GivenBase)
    assert (base.method, base.bits) == (method, knobs.get("bits", 4))
    torch.testing.assert_close(logits(loaded(base, lab).model), logits(dense), atol=0, rtol=0)
    adapter = save_adapter(tmp_path / "adapter")
    step = lab.restored(adapter, base=folder, model="embedded:tiny")
    assert lab.make(step).metrics["restore_bits"] == base.bits
    alone = lab.evaluate(str(folder), "tiny_math", limit=4, max_new_tokens=4, source="embedded:tiny")
    assert alone.metrics["restore_bits"] == base.bits
    scored = lab.evaluate(step, "tiny_math", limit=4, max_new_tokens=4)
    assert scored.metrics["largest_logit_change"] > 0
    # What PEFT computes on the dense model that the checkpoint stands for.
    attached = attach(loaded(base, lab), step, adapter, "x").model
    torch.testing.assert_close(logits(attached), logits(by_peft(adapter, dense)), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("method", ["awq", "compressed-tensors"])
def test_a_base_that_scales_the_inputs_of_its_layers_takes_no_adapter_of_others(
    lab: Lab, tmp_path: Path, method: str
) -> None:
    folder, dense = quantized_by(tmp_path / "theirs", method, rescaled=True)
    source = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    change(folder, _name_or_path="embedded:tiny")
    base = resolve_base(str(folder), offline=True)
    assert isinstance(base, GivenBase)
    assert base.origin is not None  # embeddings and the last norm are those of the source
    torch.testing.assert_close(logits(loaded(base, lab).model), logits(dense), atol=0, rtol=0)
    assert (logits(dense) - logits(source)).norm() < 0.5 * logits(source).norm()
    adapter = save_adapter(tmp_path / "adapter")
    with pytest.raises(
        ProvenanceError, match=rf"\({method}\) scales the inputs of its layers: model\.layers\.0\.input_layernorm"
    ):
        lab.restored(adapter, base=folder, model="embedded:tiny")
    allowed = lab.restored(adapter, base=folder, model="embedded:tiny", allow_mismatch=True)
    assert lab.make(allowed).metrics["allow_mismatch"] is True
    with pytest.raises(ProvenanceError, match="scales the inputs"):
        attach(loaded(base, lab), allowed.replaced(allow_mismatch=False), adapter, "x")
    quick = ["train.epochs=1", "train.train_limit=16", "train.validation_limit=8"]
    own = lab.train(folder, task="tiny_math", overrides=quick)
    assert lab.evaluate(own, limit=4, max_new_tokens=4).metrics["restore_bits"] == 4
    with pytest.raises(ProvenanceError, match="scales the inputs"):
        lab.restored(own, 16)
    with pytest.raises(ProvenanceError, match="scales the inputs"):
        lab.restored(own, 4, mode="requantize")
    assert lab.restored(own, 4).mode == "keep"


def test_scales_that_nobody_can_compare_are_refused_when_an_adapter_is_attached(lab: Lab, tmp_path: Path) -> None:
    folder, _ = quantized_by(tmp_path / "theirs", "awq")
    base = resolve_base(str(folder), source="embedded:tiny", offline=True)
    assert isinstance(base, GivenBase)
    check_inputs(base, must_know=True)
    elsewhere = base.replaced(origin=ModelRef(kind="hub", name="org/none", revision="0" * 40))
    check_inputs(elsewhere)
    with pytest.raises(ProvenanceError, match="may scale the inputs of its layers"):
        check_inputs(elsewhere, must_know=True)


def test_another_source_of_an_awq_checkpoint(lab: Lab, tmp_path: Path) -> None:
    folder, _ = quantized_by(tmp_path / "theirs", "awq", rescaled=True)
    shutil.copytree(tiny_path(), tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProvenanceError, match=r"was not made from other: model\.norm\.weight differs"):
        resolve_base(str(folder), source=str(tmp_path / "other"), offline=True)


@pytest.mark.slow
def test_awq_as_gptqmodel_makes_it(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: pip install plr[gptqmodel]")
    from plr.core.quiet import import_gptqmodel

    import_gptqmodel()
    package: Any = importlib.import_module("gptqmodel")
    quantization: Any = importlib.import_module("gptqmodel.quantization")
    backend: Any = importlib.import_module("gptqmodel.utils.backend").BACKEND.AWQ_TORCH
    source, folder = float32_base(tmp_path / "source"), tmp_path / "theirs"
    settings = quantization.AWQConfig(bits=4, group_size=32, format=quantization.FORMAT.GEMM)
    model = package.GPTQModel.load(str(source), settings, device="cpu", dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    texts = [
        f"Ann has 4 pens. She buys {n} more. How many pens has Ann? The answer is {n + 4}. " * 4 for n in range(64)
    ]
    model.quantize(backend=backend, calibration=[tokenizer(text)["input_ids"] for text in texts], batch_size=1)
    model.save(str(folder))
    tokenizer.save_pretrained(folder)
    base = resolve_base(str(folder), source=str(source), offline=True)
    assert isinstance(base, GivenBase)
    found = logits(loaded(base, lab).model)
    theirs = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert (found - theirs).norm() < 1e-2 * theirs.norm()  # their kernel multiplies in 16 bits
    original = logits(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
    assert (found - original).norm() < 0.2 * original.norm()
    with pytest.raises(ProvenanceError, match=r"scales the inputs of its layers: .*layernorm"):
        check_inputs(base)
