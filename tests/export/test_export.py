"""Exports, opened by the tools that they are for: PEFT, transformers, GPTQModel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from given import TEXT, by_peft, float32_base, logits, save_adapter
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import plr.export.merged as room
from plr import Lab
from plr.core.fingerprint import file_sha256
from plr.core.store import Artifact
from plr.embedded import tiny_path
from plr.errors import IntegrityError, PlrError, UsageError
from plr.export.run import RECORD

QUICK = ["train.epochs=1", "train.train_limit=32", "quantize.samples=8"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), dtype="float32", device="cpu", offline=True)


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Artifact:
    return lab.train(bits=4, task="tiny_math", overrides=QUICK)


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def same_tokenizer(folder: Path) -> None:
    own, theirs = (AutoTokenizer.from_pretrained(place) for place in (folder, tiny_path()))
    assert own(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]


def test_peft_names_its_base_for_others_and_opens_in_peft(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    done = lab.export(trained, tmp_path / "out", "peft")
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded:tiny"
    assert str(lab.store.home) not in (done.folder / "adapter_config.json").read_text()
    assert file_sha256(done.folder / "adapter_model.safetensors") == file_sha256(
        trained.path / "adapter_model.safetensors"
    )
    assert torch.equal(logits(by_peft(done.folder)), logits(by_peft(trained.path)))
    assert not (done.folder / "manifest.json").exists()


def test_a_restored_adapter_names_no_place_in_the_store(lab: Lab, trained: Artifact) -> None:
    for bits in (16, 8):
        restored = lab.restore(trained, bits=bits)
        config = json.loads((restored.path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "embedded:tiny"


LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "lora": ({}, True),
    "every layer": ({"target_modules": LAYERS}, True),
    "dora": ({"use_dora": True}, True),
    "rslora and patterns": (
        {"use_rslora": True, "rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, True
    ),
    "a regex": ({"target_modules": r".*\.[01]\..*\.(q|v)_proj"}, True),
    "parts trained whole": ({"modules_to_save": ["lm_head"]}, False),
    "the embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "biases": ({"bias": "all", "target_modules": ["q_proj"]}, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_peft_merges(lab: Lab, tmp_path: Path, kind: str) -> None:
    settings, streamed = KINDS[kind]
    source = float32_base(tmp_path / "source")
    adapter = save_adapter(tmp_path / "theirs", named=str(source), **settings)
    done = lab.export(str(adapter), tmp_path / "out", "merged", bits=16)
    assert done.record["made"]["streamed"] is streamed
    theirs = by_peft(adapter, opened(source))
    expected = logits(theirs)
    merged = theirs.merge_and_unload(safe_merge=True)
    ours = opened(done.folder)
    wanted = dict(merged.named_parameters())
    if (
        kind != "the embedding"
    ):  # tied to the output layer: PEFT's merge acts on both, ours as the adapter beside its base
        assert dict(ours.named_parameters()).keys() == wanted.keys()
        for name, tensor in ours.named_parameters():
            assert torch.allclose(tensor, wanted[name], atol=1e-6, rtol=0), name
    assert torch.allclose(logits(ours), expected, atol=1e-5)
    assert not torch.allclose(logits(ours), logits(opened(source)), atol=1e-3)
    same_tokenizer(done.folder)


def test_merged_whole_and_by_shards_are_the_same_bytes(
    lab: Lab, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = lab.export(trained, tmp_path / "streamed", bits=16)
    monkeypatch.setattr(room, "_is_plain", lambda *_: False)
    whole = lab.export(trained, tmp_path / "whole", bits=16)
    assert (streamed.record["made"]["streamed"], whole.record["made"]["streamed"]) == (True, False)
    with (
        safe_open(streamed.folder / "model.safetensors", "pt") as one,
        safe_open(whole.folder / "model.safetensors", "pt") as two,
    ):
        assert {*one.keys()} >= {*two.keys()}
        for key in two.keys():  # noqa: SIM118
            assert one.get_tensor(key).dtype == two.get_tensor(key).dtype
            assert torch.equal(one.get_tensor(key), two.get_tensor(key)), key


def test_no_more_than_one_file_is_in_memory(
    lab: Lab, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch as library

    limit, held = 400_000, []
    write = library.save_file

    def watched(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        held.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
        write(tensors, *args, **kwargs)

    monkeypatch.setattr(library, "save_file", watched)
    done = lab.export(trained, tmp_path / "out", bits=16, shard_gb=limit / 1e9)
    largest = max(
        tensor.numel() * tensor.element_size() for tensor in opened_tensors(tiny_path() / "model.safetensors").values()
    )
    assert len(held) > 2
    assert max(held) <= max(limit, largest)
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {file.name for file in done.folder.glob("*.safetensors")}
    single = lab.export(trained, tmp_path / "single", bits=16)
    assert torch.equal(logits(opened(done.folder)), logits(opened(single.folder)))


def opened_tensors(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, "pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118


def test_merged_into_its_own_base(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    done = lab.export(trained, tmp_path / "out", "merged")
    roundtrip = lab.restore(trained, bits=4, mode="roundtrip")
    assert torch.equal(logits(opened(done.folder)), logits(opened(roundtrip.path)))
    again = lab.export(roundtrip, tmp_path / "again", "merged")
    assert torch.equal(logits(opened(again.folder)), logits(opened(roundtrip.path)))


def test_gptq_opens_in_transformers_and_gptqmodel(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    gptqmodel = pytest.importorskip("gptqmodel")
    from plr.bases.load import load_quantized

    base = trained.step.base  # type: ignore[union-attr]
    done = lab.export(lab.store.require(base), tmp_path / "base", "gptq")
    ours = logits(load_quantized(lab.store.require(base).path, dtype=torch.float32, device="cpu"))
    theirs = gptqmodel.GPTQModel.load(
        str(done.folder), backend=gptqmodel.BACKEND.TORCH, device="cpu", dtype=torch.bfloat16
    )
    assert torch.allclose(logits(theirs.model), ours, atol=0.2)
    plain = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.bfloat16, device_map="cpu")
    assert torch.allclose(logits(plain), ours, atol=0.2)
    same_tokenizer(done.folder)
    requantized = lab.export(trained, tmp_path / "anew", "gptq", bits=4, mode="requantize")
    anew = AutoModelForCausalLM.from_pretrained(requantized.folder, dtype=torch.bfloat16, device_map="cpu")
    assert not torch.allclose(logits(anew), ours, atol=0.05)
    same_tokenizer(requantized.folder)


REFUSED = [
    ("gptq", {}, r"is an adapter beside its base\n  expected: a quantized base"),
    ("peft", {"bits": 4, "mode": "requantize"}, r"is a whole checkpoint"),
    ("merged", {"bits": 4, "mode": "requantize"}, r"expected: 16-bit weights"),
    ("gguf", {}, r"unknown export format 'gguf'"),
]


@pytest.mark.parametrize(("form", "options", "words"), REFUSED)
def test_what_a_format_does_not_hold_is_refused_before_any_work(
    lab: Lab, trained: Artifact, tmp_path: Path, form: str, options: dict[str, Any], words: str
) -> None:
    before = len(lab.store.all())
    with pytest.raises(PlrError, match=words):
        lab.export(trained, tmp_path / "out", form, **options)
    assert not (tmp_path / "out").exists()
    assert len(lab.store.all()) == before


def test_methods_that_are_no_part_of_peft_or_cannot_merge(lab: Lab, tmp_path: Path) -> None:
    sparse = lab.adapter(bits=4, task="tiny_math", adapter="sparse", overrides=QUICK)
    with pytest.raises(UsageError, match=r"sparse is a method of plr's own"):
        lab.export(sparse, tmp_path / "out", "peft")
    beside = lab.adapter(bits=4, task="tiny_math", adapter="bottleneck", overrides=QUICK)
    with pytest.raises(UsageError, match=r"bottleneck is beside them"):
        lab.export(beside, tmp_path / "out", "merged")
    base = lab.base(bits=4, task="tiny_math", samples=8)
    with pytest.raises(UsageError, match=r"is a base of 4 bits, without an adapter"):
        lab.export(base, tmp_path / "out", "peft")
    with pytest.raises(UsageError, match=r"whose checkpoint is no GPTQ checkpoint"):
        lab.export(lab.base(bits=4, task="tiny_math", method="nf4", group_size=64), tmp_path / "out", "gptq")
    with pytest.raises(UsageError, match=r"was not made by plr"):
        lab.export("embedded:tiny", tmp_path / "out", "merged")


def test_nothing_is_overwritten_but_an_export_that_is_asked_for(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not an empty folder"):
        lab.export(trained, out, "peft", force=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    first = lab.export(trained, out, "peft")
    with pytest.raises(UsageError, match=r"holds an earlier export\n  next: add --force"):
        lab.export(trained, out, "merged", bits=16)
    second = lab.export(trained, out, "merged", bits=16, force=True)
    assert (second.folder / "config.json").is_file()
    assert not (second.folder / "adapter_config.json").exists()
    assert first.record["format"] == "peft"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_a_failure_leaves_what_was_there(
    lab: Lab, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = lab.export(trained, tmp_path / "out", "peft").folder
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plr.export.merged._write_shard", fail)
    with pytest.raises(OSError, match="No space left"):
        lab.export(trained, out, "merged", bits=16, force=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_record_has_every_file(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    done = lab.export(trained, tmp_path / "out", "peft")
    files = {file.name: file for file in done.folder.iterdir() if file.name != RECORD}
    assert done.record["files"].keys() == files.keys()
    for name, entry in done.record["files"].items():
        assert entry["sha256"] == file_sha256(files[name])
    assert json.loads((done.folder / RECORD).read_text())["fingerprint"] == done.record["fingerprint"]


def test_an_altered_adapter_is_not_exported(lab: Lab, tmp_path: Path) -> None:
    adapter = lab.train(bits=4, task="tiny_math", seed=7, overrides=QUICK)
    own = Lab(tmp_path / "copy", dtype="float32", device="cpu", offline=True)
    shutil.copytree(lab.store.home, own.store.home)
    file = own.store.home / "adapter" / adapter.path.name / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError):
        own.export(adapter.path.name, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_finds_no_place_is_refused(lab: Lab, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(
        tmp_path / "theirs", config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if "layers.0." not in key}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(PlrError, match=r"its file lacks \d+ tensors"):
        lab.export(str(adapter), tmp_path / "out", bits=16, model="embedded:tiny")
