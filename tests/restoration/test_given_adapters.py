"""Adapters that PEFT saved: what plr serves and writes of them computes what transformers and PEFT compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from given import by_peft, float32_base, logits, save_adapter, write_config
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, VeraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from plr import Lab
from plr.bases.given_adapters import resolve_adapter
from plr.bases.load import load_base
from plr.core.runtime import Runtime
from plr.core.specs import UNKNOWN_BITS, GivenAdapter, GivenBase, Quantize, Restore
from plr.embedded import tiny_path
from plr.errors import IntegrityError, ModelError, PlrError, ProvenanceError, UsageError
from plr.restoration.attach import attach
from plr.restoration.fit import fit

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora with modules_to_save": {"use_dora": True, "modules_to_save": ["lm_head"]},
    "ranks and alphas by layer": {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "targets by a pattern": {"target_modules": r".*\.layers\.[01]\..*(q_proj|down_proj)"},
    "all linear layers": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "biases of the adapter": {"lora_bias": True},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "rows of the embedding": {"trainable_token_indices": [5, 7]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "excluded modules": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "vera": {"config": VeraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM", save_projection=True)},
    "ia3": {"config": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")},
    "adalora": {
        "config": AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM")
    },
    "layer norms": {"config": LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM")},
}


@pytest.fixture
def lab(home: Path) -> Lab:
    return Lab(home, dtype="float32", device="cpu", offline=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
def test_merged_at_16_bits_it_computes_what_peft_computes(lab: Lab, tmp_path: Path, kind: str) -> None:
    base = float32_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "theirs", named=str(base), **KINDS[kind])
    expected = logits(by_peft(adapter))
    assert (
        expected - logits(AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32))
    ).abs().max() > 0.01
    beside = lab.restore(adapter, 16)
    torch.testing.assert_close(logits(by_peft(beside.path)), expected, atol=1e-5, rtol=1e-5)
    if kind == "biases of the adapter":
        with pytest.raises(ModelError, match="lora_bias"):
            lab.restore(adapter, 16, merge=True)
        return
    merged = lab.restore(adapter, 16, merge=True)
    found = logits(AutoModelForCausalLM.from_pretrained(merged.path))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora with modules_to_save", "rows of the embedding", "vera"])
def test_on_k_bits_it_computes_what_peft_computes(lab: Lab, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(tmp_path / "theirs", **KINDS[kind])
    step = lab.restored(adapter, 4, task="tiny_math")
    assert isinstance(step.base, Quantize)
    lab.restore(adapter, 4, task="tiny_math")
    runtime = Runtime(home=lab.store.home, dtype="float32", device="cpu")
    base = load_base(step.base, lab.store, runtime)
    expected = logits(by_peft(adapter, load_base(step.base, lab.store, runtime).model))
    found = logits(attach(fit(base, step.adapter, adapter), step, adapter, "cell").model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_vocabulary_of_its_own(lab: Lab, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    tokenizer.add_tokens(["<call>", "</call>"])
    base = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    rows = base.get_input_embeddings().weight.shape[0] + 2
    base.resize_token_embeddings(rows)
    named = str(float32_base(tmp_path / "base"))
    adapter = save_adapter(tmp_path / "theirs", model=base, named=named, modules_to_save=["embed_tokens", "lm_head"])
    tokenizer.save_pretrained(adapter)
    expected = logits(by_peft(adapter, rows=rows), tokenizer)
    assert expected.shape[-1] == rows
    merged = lab.restore(adapter, 16, merge=True)
    again = AutoTokenizer.from_pretrained(merged.path)
    assert again.convert_tokens_to_ids("</call>") == tokenizer.convert_tokens_to_ids("</call>")
    found = logits(AutoModelForCausalLM.from_pretrained(merged.path), again)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The base is whole again for the next cell of the same process.
    plain = save_adapter(tmp_path / "plain", named=named)
    steps = [lab.result(str(one), "tiny_math", limit=4, max_new_tokens=4) for one in (adapter, plain)]
    results = lab.make_all(steps)
    alone = Lab(tmp_path / "other", dtype="float32", device="cpu", offline=True)
    other = alone.evaluate(str(plain), "tiny_math", limit=4, max_new_tokens=4)
    assert results[1].metrics["metrics"] == other.metrics["metrics"]


def test_tokens_without_a_row_are_refused(lab: Lab, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    tokenizer.add_tokens([f"<extra {i}>" for i in range(2000)])
    adapter = save_adapter(tmp_path / "theirs")
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ProvenanceError, match=r"the embedding .* rows"):
        lab.restore(adapter, 16)


def test_identity_is_content_and_not_place(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    shutil.copytree(adapter, tmp_path / "copy")
    one, two = (lab.restored(folder, 16) for folder in (adapter, tmp_path / "copy"))
    assert one.fingerprint == two.fingerprint
    known = lab.restored(adapter, 16, trained_on="nf4")
    assert known.fingerprint == one.fingerprint
    assert known.adapter.trained_bits == 4
    assert one.adapter.trained_bits == UNKNOWN_BITS
    (adapter / "README.md").write_text("words")
    assert lab.restored(adapter, 16).fingerprint == one.fingerprint
    write_config(adapter, lora_alpha=9)
    assert lab.restored(adapter, 16).fingerprint != one.fingerprint


def test_an_adapter_that_changes_after_it_was_named(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    step = lab.restored(adapter, 16)
    write_config(adapter, lora_alpha=99)
    with pytest.raises(IntegrityError, match="no longer what it was"):
        lab.make(step)
    shutil.rmtree(adapter)
    with pytest.raises(ModelError, match="not there any more"):
        lab.make(step)


def test_the_way_back_to_it_from_the_store(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    served = lab.restore(adapter, 16)
    assert served.metrics["train_bits"] is None
    step = lab.store.identify(served)
    assert isinstance(step, Restore)
    assert isinstance(step.adapter, GivenAdapter)
    scored = lab.evaluate(served, "tiny_math", limit=2, max_new_tokens=2)
    assert scored.metrics["train_bits"] is None
    assert scored.metrics["restore_bits"] == 16


@pytest.mark.parametrize(
    ("name", "bits", "method"),
    [
        ("16", 16, None),
        ("nf4", 4, "nf4"),
        ("nf4-double-quant", 4, "nf4"),
        ("int8", 8, "int8"),
        ("unknown", UNKNOWN_BITS, None),
    ],
)
def test_trained_on(lab: Lab, tmp_path: Path, name: str, bits: int, method: str | None) -> None:
    adapter = lab.trained(save_adapter(tmp_path / "theirs"), trained_on=name)
    assert adapter.trained_bits == bits
    if method is not None:
        assert isinstance(adapter.own_base, Quantize)
        assert adapter.own_base.quantization.method == method


def test_the_own_base_is_served_by_keep(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    own = lab.restored(adapter, 4, trained_on="nf4")
    assert own.mode == "keep"
    assert isinstance(own.base, Quantize)
    assert own.base.quantization.method == "nf4"
    assert lab.restored(adapter, 16, trained_on="nf4").mode == "restore"
    assert lab.restored(adapter, 16).mode == "restore"
    assert lab.restored(adapter, 16, trained_on="16").mode == "keep"
    with pytest.raises(UsageError, match="nobody says which"):
        lab.restored(adapter, 16, mode="keep")


def test_a_k_bit_folder_in_its_configuration_is_what_it_was_trained_on(lab: Lab, tmp_path: Path) -> None:
    base = lab.quantize(bits=4, task="tiny_math", samples=8)
    theirs = tmp_path / "tiny-4bit"
    shutil.copytree(base.path, theirs, ignore=shutil.ignore_patterns("manifest.json"))
    adapter = save_adapter(tmp_path / "theirs", named=str(theirs))
    found = resolve_adapter(str(adapter), offline=True)
    assert isinstance(found.own_base, GivenBase)
    assert found.trained_bits == 4
    assert found.own_base.origin is None
    with pytest.raises(UsageError, match="was quantized from is not known"):
        lab.restored(adapter, 16)
    step = lab.restored(adapter, 16, model="embedded:tiny")
    assert step.adapter.trained_bits == 4
    assert step.mode == "restore"
    assert lab.restored(adapter, 4, model="embedded:tiny").mode == "keep"


def test_pickled_weights_are_refused_with_the_way_to_convert_them(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model.bin: pickled weights are not read") as caught:
        lab.restored(adapter, 16)
    assert "save_pretrained" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"init_lora_weights": "loftq"}, ModelError, "holds a part of the base"),
        ({"init_lora_weights": "pissa_niter_16"}, ModelError, "holds a part of the base"),
        ({"peft_type": "SOMETHING"}, ModelError, "type 'SOMETHING'"),
        ({"peft_type": "XLORA"}, ModelError, "XLORA"),
        ({"task_type": "SEQ_2_SEQ_LM"}, UsageError, "SEQ_2_SEQ_LM"),
        ({"task_type": "SEQ_CLS"}, UsageError, "gives labels"),
        ({"base_model_name_or_path": None}, UsageError, "names no base"),
        ({"base_model_name_or_path": "/nowhere/model"}, UsageError, "which is not here"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_work(
    lab: Lab, tmp_path: Path, values: dict[str, Any], error: type[PlrError], words: str
) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    write_config(adapter, **values)
    with pytest.raises(error, match=words):
        lab.restored(adapter, 16)


def test_an_old_key_that_says_nothing_passes_and_a_new_one_that_says_something_does_not(
    lab: Lab, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    write_config(adapter, merge_weights=False, enable_lora=None)
    with pytest.warns(UserWarning, match="Unexpected keyword"):
        lab.restore(adapter, 16)
    write_config(adapter, use_something_new=True)
    with pytest.raises(ModelError, match="use_something_new = true"):
        lab.restore(adapter, 16)


@pytest.mark.parametrize("damage", ["cut", "no json", "a list", "a link to nothing"])
def test_damaged_folders(lab: Lab, tmp_path: Path, damage: str) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-7])
        case "no json":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case _:
            weights.unlink()
            weights.symlink_to(tmp_path / "nothing")
    with pytest.raises(ModelError):
        lab.restored(adapter, 16)


def test_the_model_that_is_named_must_be_the_one_that_the_adapter_names(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(tiny_path(), tmp_path / "one")
    shutil.copytree(tiny_path(), tmp_path / "two")
    config = tmp_path / "two" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 7777.0}))
    adapter = save_adapter(tmp_path / "theirs", named=str(tmp_path / "one"))
    assert lab.restored(adapter, 16, model=tmp_path / "one").mode == "restore"
    with pytest.raises(ProvenanceError, match="is another model"):
        lab.restored(adapter, 16, model=tmp_path / "two")
    assert lab.restored(adapter, 16, model=tmp_path / "two", allow_mismatch=True).allow_mismatch


def test_a_base_below_16_bits_needs_something_to_calibrate_on(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    with pytest.raises(UsageError, match="nothing is named to calibrate"):
        lab.restored(adapter, 4)
    text = tmp_path / "text.txt"
    text.write_text("One line.\nAnother line.\n" * 20)
    step = lab.restored(adapter, 4, calibration=text)
    assert isinstance(step.base, Quantize)
    assert lab.restored(adapter, 4, method="rtn").base.bits == 4


def test_options_of_others_are_refused_for_what_plr_trained(lab: Lab) -> None:
    step = lab.adapter(task="tiny_math")
    assert lab.restored(step, 16).base.bits == 16
    with pytest.raises(UsageError, match="holds no adapter"):
        lab.restored(None, 16)
    with pytest.raises(UsageError, match="of other tools"):
        lab.trained("0123456789ab", trained_on="nf4")


def test_a_vocabulary_of_which_one_side_is_missing_is_refused(lab: Lab, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32, tie_word_embeddings=False)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_path()).save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(base.get_input_embeddings().weight.shape[0] + 3)
    adapter = save_adapter(tmp_path / "theirs", model=base, named=str(tmp_path / "base"), modules_to_save=["lm_head"])
    file = adapter / "adapter_model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if "embed_tokens" not in key}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ProvenanceError, match="both, with a row for each token"):
        lab.restore(adapter, 16)


@pytest.mark.parametrize("place", ["partial", "in the store", "altered"])
def test_what_a_store_did_not_commit_is_no_adapter_of_another_tool(lab: Lab, tmp_path: Path, place: str) -> None:
    made = lab.restore(save_adapter(tmp_path / "theirs"), 16)
    match place:
        case "partial":
            folder = tmp_path / ".partial-0123456789ab"
            shutil.copytree(made.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
        case "in the store":
            folder = made.path
            (folder / "manifest.json").unlink()
        case _:
            folder = tmp_path / "copy"
            shutil.copytree(made.path, folder)
            write_config(folder, lora_alpha=99)
            with pytest.raises(IntegrityError, match=r"adapter_config\.json"):
                resolve_adapter(str(folder), offline=True)
            return
    with pytest.raises(UsageError, match=r"never committed|no artifact matches"):
        lab.restored(folder, 16)
    with pytest.raises(UsageError, match=r"never committed|no artifact matches"):
        lab.result(folder, "tiny_math")


def test_a_task_is_needed_to_score_it(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    with pytest.raises(UsageError, match="without a task"):
        lab.result(str(adapter))
