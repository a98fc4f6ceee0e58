"""Classification from data to table: an encoder and a decoder, trained at k bits, restored to l, scored with their heads."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS, save_tiny

from plr.bases.load import load_base
from plr.bases.quantize import SourceHolder
from plr.core.specs import Evaluate, Quantize, Restore, Source, Train
from plr.core.store import Artifact
from plr.errors import ModelError, UsageError
from plr.evaluation.cell import open_cell
from plr.evaluation.evaluate import evaluate
from plr.evaluation.holder import BaseHolder
from plr.lab import Lab
from plr.lm.classify import classify
from plr.tasks.data.rows import head_of

ROWS = {"train": 96, "validation": 16, "test": 40}
SMALL = (
    "train.epochs=6",
    "train.batch_size=16",
    "train.learning_rate=0.01",
    "quantize.samples=16",
    "quantize.group_size=32",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts in which one word decides."""
    folder = tmp_path_factory.mktemp("table")
    rng = random.Random(0)
    for split, count in ROWS.items():
        with (folder / f"{split}.tsv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["text", "label"])
            for i in range(count):
                words = [*rng.choices(WORDS[:40], k=rng.randint(2, 8)), WORDS[40 + i % 2]]
                rng.shuffle(words)
                writer.writerow([" ".join(words), ["praise", "blame"][i % 2]])
    return str(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny("roberta", tmp_path_factory.mktemp("roberta") / "small-roberta"))


@pytest.fixture(scope="module")
def adapter(lab: Lab, encoder: str, data: str) -> Artifact:
    return lab.train(encoder, 3, task="text_classification", data=data, overrides=SMALL)


@pytest.fixture(scope="module")
def result(lab: Lab, adapter: Artifact) -> Artifact:
    return lab.evaluate(adapter)


def records(result: Artifact) -> list[dict[str, Any]]:
    file = next(result.path.glob("samples_*.jsonl"))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_an_encoder_learns_on_a_quantized_base(adapter: Artifact, result: Artifact) -> None:
    losses = [point["loss"] for point in adapter.metrics["curve"] if "loss" in point]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metrics["primary"] == "acc"
    assert result.metrics["metrics"]["acc"]["value"] > 0.8
    assert result.metrics["metrics"]["roc_auc"]["value"] > 0.9
    assert result.metrics["metrics"]["answer_loss"]["value"] < 0.6
    assert result.metrics["head"] == {"is": "the adapter's", "outputs": 2, "labels": ["blame", "praise"]}
    assert result.metrics["largest_logit_change"] > 0


def test_accuracy_and_roc_area_stand_beside_the_loss_of_every_epoch(lab: Lab, adapter: Artifact) -> None:
    """The last of them are what scoring the validation split with the adapter gives."""
    measured = [point for point in adapter.metrics["curve"] if "eval_loss" in point]
    assert len(measured) >= 2
    assert all({"eval_acc", "eval_roc_auc"} <= point.keys() for point in measured)
    best = min(measured, key=lambda point: point["eval_loss"])
    scored = lab.evaluate(adapter, split="validation").metrics["metrics"]
    assert best["eval_acc"] == pytest.approx(scored["acc"]["value"], abs=1e-9)
    assert best["eval_roc_auc"] == pytest.approx(scored["roc_auc"]["value"], abs=1e-6)


def test_records_hold_outputs_labels_and_scores(result: Artifact) -> None:
    rows = records(result)
    assert len(rows) == ROWS["test"]
    for row in rows:
        (outputs,) = row["resps"][0:1]
        assert len(outputs[0]) == 2
        assert row["filtered_resps"] == [["blame", "praise"][outputs[0][1] > outputs[0][0]]]
        assert row["acc"] == float(row["filtered_resps"] == [row["target"]])
        assert row["roc_auc"] is None
        loss = torch.nn.functional.cross_entropy(
            torch.tensor(outputs), torch.tensor([["blame", "praise"].index(row["target"])])
        )
        assert row["answer_loss"] == pytest.approx(float(loss), abs=1e-5)
    written = json.loads(next(result.path.glob("results_*.json")).read_text())
    named = written["results"]["text_classification"]
    assert named["acc,none"] == sum(row["acc"] for row in rows) / len(rows)
    assert 0 <= named["roc_auc_stderr,none"] < 0.2
    assert written["configs"]["text_classification"]["doc_to_choice"] == ["blame", "praise"]


@pytest.mark.parametrize("bits", [16, 8])
def test_the_adapter_and_its_head_go_on_another_base(lab: Lab, adapter: Artifact, bits: int) -> None:
    restored = lab.evaluate(lab.restore(adapter, bits))
    assert restored.metrics["restore_bits"] == bits
    assert restored.metrics["metrics"]["acc"]["value"] > 0.7


@pytest.mark.parametrize(
    ("bits", "mode", "merge"), [(3, "roundtrip", False), (16, "restore", True), (4, "requantize", False)]
)
def test_checkpoints_hold_the_head(lab: Lab, adapter: Artifact, bits: int, mode: str, merge: bool) -> None:
    served = lab.restore(adapter, bits, mode=mode, merge=merge)
    merged = lab.evaluate(served)
    beside = lab.evaluate(lab.restored(adapter, bits) if bits != 3 else adapter)
    ours, theirs = ([row["resps"][0][0] for row in records(one)] for one in (merged, beside))
    difference = (torch.tensor(ours) - torch.tensor(theirs)).abs().max()
    assert difference < (1e-3 if mode != "requantize" else 3.0)
    assert merged.metrics["metrics"]["acc"]["value"] > 0.7


def test_a_base_alone_has_an_untrained_head_and_says_so(lab: Lab, adapter: Artifact) -> None:
    step = adapter.step
    assert isinstance(step, Train)
    base = lab.make(Evaluate(target=step.base, task=step.task))
    assert base.metrics["head"]["is"] == "untrained (random, seed 0): the scores are chance"
    assert base.metrics["largest_logit_change"] is None


def test_swapping_adapters_leaves_no_head_behind(lab: Lab, adapter: Artifact, tmp_path: Path) -> None:
    step = adapter.step
    assert isinstance(step, Train)
    cell = Evaluate(target=Restore(adapter=step, base=step.base, mode="keep"), task=step.task)
    alone = Evaluate(target=step.base, task=step.task)
    holder = BaseHolder(lab.store, lab.runtime())
    values = []
    for i, one in enumerate((alone, cell, alone, cell)):
        (tmp_path / str(i)).mkdir()
        values.append(evaluate(one, tmp_path / str(i), holder)["metrics"])
    assert values[0] == values[2]
    assert values[1] == values[3]
    assert values[0] != values[1]


def test_the_body_of_a_base_is_that_of_the_quantized_checkpoint(lab: Lab, adapter: Artifact) -> None:
    from plr.gptq import PackedLinear

    step = adapter.step
    assert isinstance(step, Train)
    assert isinstance(step.base, Quantize)
    loaded = load_base(step.base, lab.store, lab.runtime(), head=head_of(step.task))
    layers = {name for name, module in loaded.model.named_modules() if isinstance(module, PackedLinear)}
    assert len(layers) == 12  # six in each of two blocks
    assert all(name.startswith("roberta.encoder.layer.") for name in layers)
    dense = load_base(step.base.source, lab.store, lab.runtime(), head=head_of(step.task))
    texts: list[Any] = [("w1 good", None), ("w2 w3 bad", None)]
    ours, theirs = (classify(one.model, one.tokenizer, texts) for one in (loaded, dense))
    assert 0 < (ours - theirs).norm() < 2 * theirs.norm()


def test_the_gate_says_why_it_does_not_measure_an_encoder(lab: Lab, adapter: Artifact) -> None:
    step = adapter.step
    assert isinstance(step, Train)
    base = lab.store.require(step.base)
    assert base.metrics["gate"]["verdict"].startswith("not measured: an encoder predicts no next token")
    assert base.metrics["calibration"]["samples"] == 16


def test_an_encoder_writes_no_text(lab: Lab, encoder: str) -> None:
    source = Source(model=lab.resolver.model(encoder))
    with pytest.raises(ModelError, match=r"is an encoder \(roberta\): it writes no text"):
        load_base(source, lab.store, lab.runtime())


def test_an_adapter_for_labels_answers_no_questions(lab: Lab, adapter: Artifact) -> None:
    step = lab.result(adapter, task="tiny_math", limit=2)
    with pytest.raises(UsageError, match="trained on text_classification \\(one of 2 labels\\)"):
        open_cell(step)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_other_encoders_go_the_same_road(lab: Lab, kind: str, data: str, tmp_path: Path) -> None:
    model = str(save_tiny(kind, tmp_path / kind))
    few = (*SMALL[1:], "train.epochs=1", "train.train_limit=16", "evaluate.limit=8")
    adapter = lab.train(model, 4, task="text_classification", data=data, overrides=few)
    assert lab.evaluate(lab.restored(adapter, 16), limit=8).metrics["n"] == 8


def test_a_decoder_with_a_head(lab: Lab, data: str) -> None:
    options = (
        "train.epochs=3",
        "train.batch_size=16",
        "train.learning_rate=0.005",
        "train.train_limit=64",
        "train.validation_limit=4",
        "quantize.samples=8",
    )
    adapter = lab.train("embedded:tiny", 4, task="text_classification", data=data, overrides=options)
    losses = [point["loss"] for point in adapter.metrics["curve"] if "loss" in point]
    assert losses[-1] < 0.8 * losses[0]
    result = lab.evaluate(lab.restored(adapter, 16), limit=20)
    assert result.metrics["metrics"]["acc"]["value"] > 0.6
    assert result.metrics["n"] == 20


def encoder_base(lab: Lab, encoder: str, data: str, settings: tuple[str, ...]) -> Quantize:
    bits = 8 if "method=int8" in settings else 4
    options = ("quantize.samples=8", "quantize.group_size=32", *(f"quantize.{setting}" for setting in settings))
    base = lab.base(encoder, bits, task="text_classification", data=data, overrides=options)
    assert isinstance(base, Quantize)
    return base


def test_an_encoder_quantized_in_little_memory_has_the_same_bytes(
    lab: Lab, encoder: str, data: str, tmp_path: Path
) -> None:
    step = encoder_base(lab, encoder, data, ("method=gptq",))
    for name in ("whole", "little"):
        runtime = lab.runtime().model_copy(update={"low_memory": name == "little"})
        SourceHolder(runtime).quantize(step, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "little"))
    assert first == second


@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        (8, ("method=gptq",)),
        (4, ("method=gptq",)),
        (2, ("method=gptq", "grid=hessian", "act_group_aware=true", "refine_passes=1", "input_correction=0.5")),
        (2, ("method=rtn",)),
        (4, ("method=nf4",)),
        (8, ("method=int8", "group_size=-1")),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_bases_of_any_method_carry_a_head(
    lab: Lab, encoder: str, data: str, kind: str, bits: int, settings: tuple[str, ...]
) -> None:
    if settings[0] in ("method=nf4", "method=int8"):
        pytest.importorskip("bitsandbytes")
        if kind == "encoder":
            with pytest.raises(ModelError, match="is for language models, and small-roberta is an encoder"):
                SourceHolder(lab.runtime()).quantize(encoder_base(lab, encoder, data, settings), Path("unused"))
            return
    model = encoder if kind == "encoder" else "embedded:tiny"
    options = ("quantize.samples=8", "quantize.group_size=32", *(f"quantize.{setting}" for setting in settings))
    base = lab.quantize(model, bits, task="text_classification", data=data, overrides=options)
    step = base.step
    assert isinstance(step, Quantize)
    head = head_of(lab.resolver.task("text_classification", data=data))
    loaded, dense = (load_base(one, lab.store, lab.runtime(), head=head) for one in (step, step.source))
    texts: list[Any] = [("w1 good", None), ("w2 w3 bad", None), ("w4 " * 9, None)]
    ours, theirs = (classify(one.model, one.tokenizer, texts) for one in (loaded, dense))
    error = float((ours - theirs).norm() / theirs.norm())
    assert 0 < error < {8: 0.1, 4: 0.6, 2: 3.0}[bits]


def test_a_head_that_gives_a_number(lab: Lab, tmp_path: Path) -> None:
    """STS-B in small: how many words of the second text are those of the first."""
    model = str(save_tiny("bert", tmp_path / "bert"))
    rng = random.Random(1)
    for name, count in (("train", 60), ("validation", 20)):
        with (tmp_path / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for i in range(count):
                first = rng.sample(WORDS, 5)
                second = [*first[: i % 6], *rng.sample(WORDS, 5)][:5]
                row = {"sentence1": " ".join(first), "sentence2": " ".join(second), "label": float(i % 6)}
                stream.write(json.dumps(row) + "\n")
    train = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    with (tmp_path / "validation.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(train) + "\n")
    options = ("train.epochs=2", "train.batch_size=16", "train.learning_rate=0.005")
    adapter = lab.train(model, 16, task="glue_stsb", data=str(tmp_path), overrides=options)
    result = lab.evaluate(adapter)
    assert list(result.metrics["metrics"]) == ["pearson", "spearman", "answer_loss"]
    assert result.metrics["primary"] == "pearson"
    assert result.metrics["head"]["outputs"] == 1
    assert result.metrics["seen_in_train"] <= 1
    rows = records(result)
    given, gold = ([row["resps"][0][0][0] for row in rows], [row["doc"]["label"] for row in rows])
    pair = torch.tensor([given, gold], dtype=torch.float64)
    assert result.metrics["metrics"]["pearson"]["value"] == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)
    assert [row["answer_loss"] for row in rows] == pytest.approx(
        [(a - b) ** 2 for a, b in zip(given, gold, strict=True)], rel=1e-4
    )
    assert rows[0]["pearson"] is None
