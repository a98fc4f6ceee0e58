"""Modes between keeping and restoring: what they serve, against weights added up by hand, and what the guard decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from weights import dense_weights, lora_change, written_weights

from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Restore, Train
from plr.errors import ConfigError, UsageError
from plr.lab import Lab
from plr.report.write import write_study
from plr.restoration.served import as_served
from plr.study import Study, study_config

TRAINED = ["train.train_limit=96", "train.batch_size=16", "train.learning_rate=0.002", "train.validation_limit=8"]
FILL: dict[str, Any] = {"preset": "tiny", "overrides": ["quantize.method=rtn", *TRAINED], "task": "tiny_math"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("store"), offline=True, dtype="float32")


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Train:
    step = lab.adapter("embedded:tiny", 2, **FILL)
    lab.make(step)
    return step


@pytest.mark.parametrize(("t", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.5, 1.6), (1.0, 1.0)])
def test_a_point_on_the_path_is_the_sum_of_its_parts(lab: Lab, trained: Train, t: float, scale: float) -> None:
    restored = lab.restore(trained, 16, mode="path", t=t, scale=scale)
    low, high = dense_weights(lab, trained.base), dense_weights(lab, trained.base.source)
    change = lora_change(lab.store.require(trained).path)
    found = written_weights(restored.path)
    assert any(not torch.equal(low[name], high[name]) for name in low)
    for name, weight in found.items():
        whole = torch.lerp(low[name], high[name], t) + scale * change.get(name, torch.zeros(()))
        assert torch.allclose(weight, whole, rtol=2**-8, atol=1e-6), name  # written in bfloat16
    assert restored.metrics["serves"] == "path"
    assert "curve" not in restored.metrics


def test_the_ends_of_the_path_are_roundtrip_and_merge(lab: Lab, trained: Train) -> None:
    for t, other in ((0.0, {"bits": 2, "mode": "roundtrip"}), (1.0, {"bits": 16, "merge": True})):
        point = lab.restore(trained, 16, mode="path", t=t, scale=1.0)
        same = lab.restore(trained, **other)
        ours, theirs = written_weights(point.path), written_weights(same.path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_chosen_point_has_the_least_loss_of_all_that_were_tried(lab: Lab, trained: Train) -> None:
    metrics = lab.restore(trained, 16, mode="path", select_rows=24).metrics
    curve = metrics["curve"]
    assert [(p["t"], p["scale"]) for p in curve][:5] == [(0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
    assert 7 <= len(curve) <= 13
    assert len({p["loss"] for p in curve}) == len(curve)
    best = min(curve, key=lambda p: p["loss"])
    assert (metrics["t"], metrics["scale"]) == (best["t"], best["scale"])
    assert metrics["chosen_on"] == 24


def test_the_loss_of_a_point_is_that_of_the_model_that_is_written(lab: Lab, trained: Train) -> None:
    """The curve is read on a model that moves; what is evaluated was written. Rows differ, so the same rows are scored."""
    from plr.restoration.rows import validation_rows
    from plr.restoration.served import load_served

    metrics = lab.restore(trained, 16, mode="path", select_rows=24).metrics
    point = metrics["curve"][2]
    written = lab.restored(trained, 16, mode="path", t=point["t"], scale=point["scale"])
    lab.make(written)
    loaded = load_served(written, lab.store, Runtime(dtype="float32"))
    marks = validation_rows(trained.task, 24, 0).marks(loaded.model, loaded.tokenizer)
    assert marks.loss == pytest.approx(point["loss"], rel=5e-3)  # it is written in bfloat16


@pytest.mark.parametrize("bits", [16, 4])
def test_a_scaled_adapter_is_the_adapter_times_the_factor(lab: Lab, trained: Train, bits: int) -> None:
    restored = lab.restore(trained, bits, scale=1.7)
    before, after = lora_change(lab.store.require(trained).path), lora_change(restored.path)
    assert before.keys() == after.keys()
    assert all(torch.allclose(1.7 * before[name], after[name]) for name in before)
    assert restored.metrics["mode"] == "scale"


@pytest.mark.parametrize(("bits", "scale"), [(16, None), (4, None), (4, 1.4)])
def test_a_correction_takes_back_the_best_part_of_the_change(
    lab: Lab, trained: Train, bits: int, scale: float | None
) -> None:
    """The part that is added to the adapter is -U U^T E, U of the rank that the layer has left."""
    restored = lab.restore(trained, bits, mode="correct", correct=8, scale=scale)
    step = lab.store.identify(restored)
    assert isinstance(step, Restore)
    low, high = dense_weights(lab, trained.base), dense_weights(lab, step.base)
    own, whole = lora_change(lab.store.require(trained).path), lora_change(restored.path)
    assert own.keys() < whole.keys()  # layers without an adapter are corrected too
    for name, change in whole.items():
        error = high[name] - low[name]
        part = (scale or 1.0) * own.get(name, torch.zeros_like(error)) - change  # C
        u = torch.linalg.svd(part).U[:, : torch.linalg.matrix_rank(part, rtol=1e-4)]
        assert u.shape[1] == restored.metrics["rank"] - (restored.metrics["rank"] - 8 if name in own else 0), name
        assert torch.allclose(u @ u.T @ error, part, atol=2e-3 * float(error.abs().max())), name
    assert 0.3 < restored.metrics["taken_back"] < 1


def test_a_corrected_adapter_opens_with_peft_alone(lab: Lab, trained: Train) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from plr.embedded import tiny_path

    restored = lab.restore(trained, 16, mode="correct", correct=8)
    ids = torch.tensor([[5, 9, 17, 33]])
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    change = lora_change(restored.path)
    with torch.no_grad():
        by_peft = PeftModel.from_pretrained(base, str(restored.path))(input_ids=ids).logits
        added: Any = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
        for name, parameter in added.named_parameters():
            parameter += change.get(name, torch.zeros(()))
        assert torch.allclose(added(input_ids=ids).logits, by_peft, atol=1e-4)


def test_a_correction_of_every_rank_is_keeping(lab: Lab, trained: Train) -> None:
    """W_l + dW - E is W_k + dW."""
    restored = lab.restore(trained, 16, mode="correct", correct=512)
    low = dense_weights(lab, trained.base)
    change, own = lora_change(restored.path), lora_change(lab.store.require(trained).path)
    high = dense_weights(lab, trained.base.source)
    for name in change:
        kept = low[name] + own.get(name, torch.zeros(()))
        assert torch.allclose(high[name] + change[name], kept, atol=1e-4), name


def test_evaluations_read_what_was_made(lab: Lab, trained: Train) -> None:
    """A factor of next to nothing: the adapter no longer acts, and the scores say so."""
    weak = lab.restored(trained, 16, scale=1e-3)
    plain = lab.restored(trained, 16)
    losses = [
        lab.make(lab.result(step, "tiny_math", limit=8)).metrics["metrics"]["answer_loss"]["value"]
        for step in (weak, plain, trained.base.source)
    ]
    assert losses[0] == pytest.approx(losses[2], rel=0.02)
    assert abs(losses[1] - losses[2]) > 0.1
    assert lab.result(weak, limit=8).inputs == (weak,)


@pytest.mark.parametrize("bits", [16, 4])
def test_the_guard_serves_one_of_its_candidates_and_says_why(lab: Lab, trained: Train, bits: int) -> None:
    restored = lab.restore(trained, bits, mode="auto", correct=8, select_rows=40)
    step, metrics = lab.store.identify(restored), restored.metrics
    assert isinstance(step, Restore)
    names = [one["mode"] for one in metrics["candidates"]]
    assert names[:2] == ["keep", "restore"]
    assert names[-1] == "correct"
    assert metrics["serves"] in names
    assert metrics["sentence"].startswith(metrics["serves"])
    if metrics["verdict"] is not None:
        assert metrics["verdict"]["rows"] == 20
        assert (metrics["serves"] == metrics["best"]) == metrics["verdict"]["certified"]
    assert (restored.path / "model.safetensors").is_file() == (bits == 16)
    result = lab.make(lab.result(step, limit=8)).metrics["metrics"]
    served_as = as_served(step, lab.store)
    if bits == 4 and metrics["serves"] == "keep":
        assert served_as.base == trained.base
        kept = lab.make(lab.result(lab.restored(trained, 2), limit=8)).metrics["metrics"]
        assert result == kept
    else:
        assert served_as == step


def test_chosen_where_nothing_is_left_to_choose_is_refused(lab: Lab, trained: Train) -> None:
    with pytest.raises(UsageError, match="--t with mode scale"):
        lab.restored(trained, 16, mode="scale", t=0.5)
    with pytest.raises(UsageError, match="mode path to 4 bits"):
        lab.restored(trained, 4, mode="path")
    with pytest.raises(UsageError, match="mode correct to 2 bits"):
        lab.restored(trained, 2, mode="correct")
    with pytest.raises(UsageError, match="--merge with --mode path"):
        lab.restored(trained, 16, mode="path", merge=True)
    with pytest.raises(ConfigError, match="t"):
        lab.restored(trained, 16, mode="path", t=1.5)
    with pytest.raises(ConfigError, match="scale"):
        lab.restored(trained, 16, scale=-1.0)


def test_methods_that_do_not_fit_are_refused_before_any_work(lab: Lab) -> None:
    sparse = lab.adapter("embedded:tiny", 2, adapter="sparse", **FILL)
    with pytest.raises(UsageError, match="no lora_alpha"):
        lab.restored(sparse, 16, scale=2.0)
    with pytest.raises(UsageError, match="correct adds ranks to a LoRA"):
        lab.restored(sparse, 16, mode="correct", scale=1.0)
    dora = lab.adapter("embedded:tiny", 2, adapter="dora", **FILL)
    with pytest.raises(UsageError, match="correct adds ranks to a LoRA"):
        lab.restored(dora, 16, mode="correct")
    path = lab.restored(sparse, 16, mode="path")
    assert path.correction is not None
    assert path.correction.scale == 1.0  # there is nothing to multiply
    assert path.correction.t is None


def test_a_method_that_merges_goes_along_the_path(lab: Lab) -> None:
    """DoRA, whose change depends on the base: at t = 1 it is the merge on the source, at t = 0 that on its own base."""
    dora = lab.adapter("embedded:tiny", 2, adapter="dora", **FILL)
    lab.make(dora)
    for t, other in ((0.0, {"bits": 2, "mode": "roundtrip"}), (1.0, {"bits": 16, "merge": True})):
        ours = written_weights(lab.restore(dora, 16, mode="path", t=t, scale=1.0).path)
        theirs = written_weights(lab.restore(dora, **other).path)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_given_bears_identity_and_what_is_not_read_does_not(lab: Lab, trained: Train) -> None:
    prints = {
        lab.restored(trained, 16, **options).fingerprint
        for options in (
            {"mode": "path"}, {"mode": "path", "t": 0.5}, {"mode": "path", "t": 0.5, "scale": 1.0},
            {"mode": "path", "select_rows": 65}, {"scale": 1.0}, {"scale": 1.25}, {"mode": "scale"}, {"mode": "correct"},
            {"correct": 16}, {"mode": "auto"}, {"mode": "restore"},
        )
    }  # fmt: skip
    assert len(prints) == 11
    given = {"mode": "path", "t": 0.5, "scale": 1.0}
    assert lab.restored(trained, 16, **given) == lab.restored(trained, 16, select_rows=99, **given)
    assert lab.restored(trained, 16, mode="path") == lab.restored(trained, 16, mode="path", select_rows=64)


def test_a_study_has_them_as_columns_and_draws_the_curve(lab: Lab, tmp_path: Path) -> None:
    config = study_config(
        {
            "name": "between",
            "preset": "tiny",
            "train_bits": [2],
            "restore_bits": [16],
            "modes": ["restore", "path"],
            "correction": {"rows": 16},
            "quantize": {"method": "rtn"},
            "train": {"train_limit": 96, "batch_size": 16, "learning_rate": 0.002, "validation_limit": 8},
            "evaluate": {"limit": 4},
            "runtime": {"dtype": "float32"},
        }
    )
    study = Study(config)
    assert [cell.mode for cell in study.cells] == ["restore", "path", "keep"]
    assert study.run(lab.store, study.runtime(offline=True)).failed == {}
    paths = write_study(study, lab.store, tmp_path)
    assert "path 16" in paths["table"].read_text()
    page = paths["html"].read_text()
    assert "Between keeping and restoring" in page
    assert "t: 0 keeps, 1 restores" in page
    assert isinstance(study.cells[1].step, Evaluate)


def test_the_command_explains_its_modes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "restore", "--explain", "--json")
    assert code == 0
    explained = json.loads(out)
    assert [row["mode"] for row in explained["modes"]][:2] == ["restore", "keep"]
    assert all(row["files"] and row["who serves so"] for row in explained["modes"])
    assert explained["recommended"].startswith("Recommended: auto")


def test_the_command_takes_the_options(
    lab: Lab, trained: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLR_HOME", str(lab.store.home))
    ref = lab.store.require(trained).path.name
    for options, mode in (
        (["--mode", "path", "--t", "0.5", "--scale", "1"], "path"),
        (["--scale", "1.3"], "scale"),
        (["--correct", "4"], "correct"),
    ):
        code, out, err = run(monkeypatch, capsys, "restore", ref, "--bits", "16", *options, "--json")
        assert code == 0, err
        assert json.loads(out)["metrics"]["serves"] == mode
        code, out, _ = run(monkeypatch, capsys, "show", json.loads(out)["path"])
        assert f"serves       {mode}" in out
