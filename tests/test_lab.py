"""The whole road on the embedded base with tiny budgets: real model, real GPTQ, real training, real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plr.core.specs import Restore, Source
from plr.core.store import Artifact
from plr.embedded import tiny_path
from plr.errors import IntegrityError, ProvenanceError, UsageError
from plr.lab import Lab

SMALL = (
    "train.train_limit=48",
    "train.batch_size=16",
    "train.validation_limit=8",
    "quantize.samples=16",
    "evaluate.limit=6",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


@pytest.fixture(scope="module")
def base(lab: Lab) -> Artifact:
    return lab.quantize(bits=3, overrides=SMALL)


@pytest.fixture(scope="module")
def adapter(lab: Lab, base: Artifact) -> Artifact:
    return lab.train(bits=3, overrides=SMALL)


def logits(model: Any, tokenizer: Any, text: str = "Question: 1 + 1\nAnswer:") -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


def test_manifest_of_a_base_says_what_it_was_made_of(base: Artifact) -> None:
    metrics = base.metrics
    assert metrics["calibration"]["samples"] == 16
    assert len(metrics["calibration"]["ids"]) == 16
    assert all(i.startswith("train-") for i in metrics["calibration"]["ids"])
    assert len(metrics["calibration"]["sha256"]) == 64
    assert metrics["calibration"]["truncated"] == 0
    assert metrics["calibration"]["tokens"] > 16
    assert all(module["error"] <= module["rtn_error"] * 1.001 for module in metrics["modules"] if module["rtn_error"])
    assert metrics["gate"]["loss"] > metrics["gate"]["loss_16bit"]
    base.check()


def test_manifest_of_an_adapter_records_the_run(adapter: Artifact) -> None:
    metrics = adapter.metrics
    assert metrics["steps"] == 3
    assert metrics["rows"] == {"train": 48, "validation": 8}
    assert metrics["trainable_parameters"] > 0
    assert metrics["peak_memory_bytes"] > 0
    assert metrics["seconds_per_step"] > 0
    losses = [point["loss"] for point in metrics["curve"] if "loss" in point]
    assert losses[-1] < losses[0]
    assert metrics["best"]["validation_loss"] == min(p["eval_loss"] for p in metrics["curve"] if "eval_loss" in p)


def test_adapter_opens_in_plain_peft(adapter: Artifact) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plr.embedded import tiny_path

    plain = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    before = logits(plain, tokenizer)
    after = logits(PeftModel.from_pretrained(plain, str(adapter.path)), tokenizer)
    assert (after - before).abs().max() > 1e-3


def test_restore_records_that_the_adapter_acts(lab: Lab, adapter: Artifact) -> None:
    restored = lab.restore(adapter, bits=16)
    assert restored.metrics["largest_logit_change"] > 0
    assert (restored.metrics["train_bits"], restored.metrics["restore_bits"], restored.metrics["mode"]) == (
        3,
        16,
        "restore",
    )
    assert load_file(restored.path / "adapter_model.safetensors").keys()


def test_merged_checkpoint_gives_the_logits_of_the_attached_adapter(lab: Lab, adapter: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    merged = lab.restore(adapter, bits=16, merge=True)
    assert merged.metrics["largest_merge_difference"] < 0.1 * merged.metrics["largest_logit_change"]
    model = AutoModelForCausalLM.from_pretrained(merged.path)
    assert model.dtype == torch.bfloat16
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_roundtrip_is_the_maths_of_keep(lab: Lab, adapter: Artifact) -> None:
    """Dense W_k + dW in the dtype of the source, so equal up to its rounding."""
    dense = lab.restore(adapter, bits=3, mode="roundtrip")
    assert dense.metrics["largest_merge_difference"] < 0.1 * dense.metrics["largest_logit_change"]
    config = json.loads((dense.path / "config.json").read_text())
    assert "quantization_config" not in config


def test_requantize_writes_one_low_bit_checkpoint(lab: Lab, adapter: Artifact) -> None:
    one = lab.restore(adapter, bits=4, mode="requantize")
    config = json.loads((one.path / "config.json").read_text())
    assert config["quantization_config"]["bits"] == 4
    score = lab.evaluate(one, limit=4, max_new_tokens=4)
    assert score.metrics["metrics"]["answer_loss"]["n"] == 4


def test_merge_below_16_bits_is_refused(lab: Lab, adapter: Artifact) -> None:
    with pytest.raises(UsageError, match="--merge with --bits 4 would round the adapter away"):
        lab.restore(adapter, bits=4, merge=True)


def test_keep_on_another_base_is_refused(lab: Lab, adapter: Artifact) -> None:
    with pytest.raises(UsageError, match="mode keep serves the base the adapter was trained on"):
        lab.restore(adapter, bits=16, mode="keep")


def test_results_are_in_the_layout_of_lm_eval(lab: Lab, adapter: Artifact) -> None:
    result = lab.evaluate(lab.restored(adapter, bits=4), limit=6, max_new_tokens=8)
    document = json.loads(next(result.path.glob("results_*.json")).read_text())
    assert {
        "results",
        "configs",
        "versions",
        "n-shot",
        "n-samples",
        "higher_is_better",
        "git_hash",
        "date",
    } <= document.keys()
    assert document["n-samples"] == {"tiny_math": {"original": 400, "effective": 6}}
    assert "exact_match,strict-match" in document["results"]["tiny_math"]
    assert "exact_match_stderr,strict-match" in document["results"]["tiny_math"]
    samples = [
        json.loads(line) for line in next(result.path.glob("samples_tiny_math_*.jsonl")).read_text().splitlines()
    ]
    assert len(samples) == 6
    wanted = {
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "doc_hash",
        "prompt_hash",
        "target_hash",
    }
    assert all(wanted <= sample.keys() for sample in samples)
    mean = sum(sample["answer_loss"] for sample in samples) / 6
    assert result.metrics["metrics"]["answer_loss"]["value"] == pytest.approx(mean)


def test_hot_swapped_cells_equal_cells_alone(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:
    """Two adapters swapped over one base give what each gives alone on a fresh base."""
    from plr.evaluation.evaluate import evaluate
    from plr.evaluation.holder import BaseHolder

    other = lab.train(bits=16, overrides=SMALL)
    steps = [lab.result(lab.restored(a, bits=16), limit=4, max_new_tokens=8) for a in (adapter, other)]
    shared = BaseHolder(lab.store, lab.runtime())
    found = []
    for i, step in enumerate(steps * 2):
        folder = tmp_path / f"shared-{i}"
        folder.mkdir()
        found.append(evaluate(step, folder, shared)["metrics"]["answer_loss"]["value"])
    alone = []
    for i, step in enumerate(steps):
        folder = tmp_path / f"alone-{i}"
        folder.mkdir()
        alone.append(evaluate(step, folder, BaseHolder(lab.store, lab.runtime()))["metrics"]["answer_loss"]["value"])
    assert found == alone * 2
    assert alone[0] != alone[1]


def test_adapter_of_another_model_is_refused(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:

    from plr.embedded import tiny_path

    other = tmp_path / "other"
    shutil.copytree(tiny_path(), other)
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * 1.01}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProvenanceError, match="the adapter was trained on tiny"):
        lab.restored(adapter, bits=16, model=str(other))
    allowed = lab.restored(adapter, bits=16, model=str(other), allow_mismatch=True)
    assert lab.make(allowed).metrics["allow_mismatch"] is True


def test_copy_of_the_model_in_another_place_is_the_same_model(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:

    from plr.embedded import tiny_path

    shutil.copytree(tiny_path(), tmp_path / "copy")
    here = Source(model=lab.resolver.model(str(tmp_path / "copy")))
    again = Source(model=lab.resolver.model(str(tmp_path / "copy")))
    assert here == again


def test_an_adapter_that_holds_a_part_of_its_base_is_refused(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:
    """What plr saves is converted; a file that is not, as PEFT itself writes it, fits its own base alone."""

    from plr.bases.load import load_base
    from plr.restoration.attach import attach

    shutil.copytree(adapter.path, tmp_path / "absorbing")
    file = tmp_path / "absorbing" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa_niter_4"}))
    step = lab.restored(adapter, bits=16)
    loaded = load_base(step.base, lab.store, lab.runtime())
    with pytest.raises(ProvenanceError, match="pissa_niter_4: it holds a part of its own 3-bit base"):
        attach(loaded, step, tmp_path / "absorbing", "restored")


def test_an_adapter_that_does_nothing_is_found_out(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:

    from plr.bases.load import load_base
    from plr.restoration.attach import attach

    shutil.copytree(adapter.path, tmp_path / "zero")
    file = tmp_path / "zero" / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(file).items()}, file)
    step = lab.restored(adapter, bits=16)
    loaded = load_base(step.base, lab.store, lab.runtime())
    with pytest.raises(IntegrityError, match="changes no logit"):
        attach(loaded, step, tmp_path / "zero", "zero")


def test_corrupted_adapter_is_an_integrity_error(lab: Lab, adapter: Artifact) -> None:
    file = adapter.path / "adapter_model.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-10])
        with pytest.raises(IntegrityError, match=r"bytes, .* were written"):
            lab.evaluate(lab.restored(adapter, bits=8), limit=2)
    finally:
        file.write_bytes(whole)


def test_calibration_rows_that_stand_in_test_are_refused(lab: Lab, tmp_path: Path) -> None:
    from plr.errors import LeakageError
    from plr.tasks.data.rows import load_split, resolve_task

    row = load_split(resolve_task("tiny_math"), "test").examples[3]
    (tmp_path / "leak.jsonl").write_text(json.dumps({"text": row.prompt + row.target}) + "\n")
    with pytest.raises(LeakageError, match=row.id):
        lab.quantize(bits=4, overrides=[f"quantize.calibration={tmp_path / 'leak.jsonl'}", "quantize.samples=1"])


def test_ready_calibration_set_is_accepted(lab: Lab) -> None:
    ready = Path(__file__).parents[1] / "calibration" / "tiny_math.jsonl"
    made = lab.quantize(bits=4, overrides=[f"quantize.calibration={ready}", "quantize.samples=8"])
    assert made.metrics["calibration"]["source"] == "tiny_math.jsonl"
    assert made.metrics["calibration"]["samples"] == 8


def test_update_does_not_depend_on_the_micro_batch(lab: Lab, tmp_path: Path, base: Artifact) -> None:
    """Gradient accumulation over 4 x 4 rows equals one batch of 16: the same losses and adapter up to float rounding.

    Adam divides by the size of a gradient, so elements whose gradient is rounding noise may differ; the whole may not.
    """

    from plr.training.train import train

    step = lab.adapter(bits=3, overrides=[*SMALL, "train.seed=5"])
    adapters, losses = [], []
    for micro in (4, 16):
        folder = tmp_path / str(micro)
        folder.mkdir()
        metrics = train(step, folder, lab.store, lab.runtime({"micro_batch": micro}))
        losses.append([point["loss"] for point in metrics["curve"] if "loss" in point])
        adapters.append(load_file(folder / "adapter_model.safetensors"))
        shutil.rmtree(lab.store.work(step))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, tensor in adapters[0].items():
        assert (tensor - adapters[1][name]).norm() < 0.01 * tensor.norm()


def test_rows_that_do_not_fit_are_an_error(lab: Lab) -> None:
    from plr.errors import DataError

    with pytest.raises(DataError, match=r"row train-\d+ has \d+ tokens"):
        lab.train(bits=16, overrides=[*SMALL, "train.max_length=20"])


def test_restore_step_without_an_artifact_of_its_own_is_not_stored_by_the_grid(lab: Lab, adapter: Artifact) -> None:
    step = lab.result(lab.restored(adapter, bits=8), limit=2)
    assert isinstance(step.target, Restore)
    assert [need.kind for need in step.inputs] == ["adapter", "base"]


@pytest.mark.parametrize("options", [{"calibration": "text.jsonl", "samples": 16}, {"method": "rtn"}])
def test_a_base_alone_needs_no_task(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_path(), "mine")
    texts = [{"text": f"Text number {i}: what is {i} plus {i}? It is {2 * i}."} for i in range(40)]
    Path("text.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    quick = {"preset": "paper", "group_size": 32, "overrides": ["quantize.max_length=64"]}
    made = lab.quantize(tmp_path / "mine", 4, **quick, **options)
    gate = made.metrics["gate"]
    if "calibration" in options:
        assert made.metrics["calibration"]["samples"] == 16
        assert gate["texts"][0]["text"] == "text.jsonl, documents not drawn"
    else:
        assert gate["verdict"].startswith("not measured")
    with pytest.raises(UsageError, match="no task was given"):
        lab.quantize(tmp_path / "mine", 4, preset="paper")
