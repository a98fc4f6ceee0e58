"""The correcting modes on other kinds of adapters and bases: trained heads, adapters of another tool on NF4, all their settings."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from given import save_adapter
from safetensors.torch import load_file
from tiny_models import WORDS, save_tiny

from plr.core.store import Artifact
from plr.errors import ModelError
from plr.lab import Lab

SMALL = (
    "train.epochs=3",
    "train.batch_size=16",
    "train.learning_rate=0.01",
    "quantize.samples=16",
    "quantize.group_size=32",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), offline=True, dtype="float32")


@pytest.fixture(scope="module", params=["roberta", "bert", "embedded:tiny"])
def judge(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A classifier on 3 bits: texts in which one word decides."""
    folder, rng = tmp_path_factory.mktemp("table"), random.Random(0)
    for split, count in {"train": 96, "validation": 48, "test": 24}.items():
        with (folder / f"{split}.tsv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["text", "label"])
            for i in range(count):
                words = [*rng.choices(WORDS[:40], k=rng.randint(2, 8)), WORDS[40 + i % 2]]
                rng.shuffle(words)
                writer.writerow([" ".join(words), ["praise", "blame"][i % 2]])
    kind: str = request.param
    model = kind if ":" in kind else str(save_tiny(kind, tmp_path_factory.mktemp("model") / "small"))
    return lab.train(model, 3, task="text_classification", data=str(folder), overrides=SMALL)


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (16, {"mode": "path"}),
        (16, {"correct": 4}),
        (8, {"correct": 4}),
        (8, {"mode": "scale"}),
        (16, {"mode": "auto"}),
        (8, {"mode": "auto"}),
    ],
)
def test_a_trained_head_goes_along(lab: Lab, judge: Artifact, bits: int, options: dict[str, Any]) -> None:
    """The marks that chose are those of an evaluation of what was written, on the same rows."""
    restored = lab.restore(judge, bits, **options)
    result = lab.evaluate(restored, split="validation", limit=None)
    measured = {name: one["value"] for name, one in result.metrics["metrics"].items()}
    assert result.metrics["head"]["is"] == "the adapter's"
    if "curve" in restored.metrics and "candidates" not in restored.metrics:  # all 48 rows chose
        best = min(restored.metrics["curve"], key=lambda point: point["loss"])
        assert measured["answer_loss"] == pytest.approx(best["loss"], rel=0.02)
        assert measured["acc"] == pytest.approx(best["exact"], abs=0.03)
    assert measured["acc"] > 0.6


def test_the_ends_are_keeping_and_restoring(lab: Lab, judge: Artifact) -> None:
    losses = {
        point["t"]: point["loss"]
        for point in lab.restore(judge, 16, mode="path").metrics["curve"]
        if point["scale"] == 1
    }
    for t, bits in ((0.0, 3), (1.0, 16)):
        result = lab.evaluate(lab.restore(judge, bits), split="validation", limit=None)
        assert result.metrics["metrics"]["answer_loss"]["value"] == pytest.approx(losses[t], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"mode": "path", "select_rows": 24}, {"correct": 4}, {"mode": "scale"}, {"mode": "auto", "select_rows": 24}],
)
def test_an_adapter_of_another_tool_on_nf4(lab: Lab, tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install plr[bitsandbytes]")
    folder = save_adapter(tmp_path / "theirs")
    restored = lab.restore(str(folder), 16, trained_on="nf4", task="tiny_math", **options)
    assert restored.metrics["largest_logit_change"] > 0
    if "curve" in restored.metrics:
        losses = {point["t"]: point["loss"] for point in restored.metrics["curve"] if point["scale"] == 1}
        assert len(set(losses.values())) == len(losses)


def test_a_lora_of_some_layers_is_corrected_on_all(lab: Lab, tmp_path: Path) -> None:
    """Settings that choose layers are of the adapter alone: the corrected file names all of its own."""
    folder = save_adapter(
        tmp_path / "theirs", layers_to_transform=[0, 2], rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}
    )
    restored = lab.restore(str(folder), 16, trained_on="nf4", task="tiny_math", mode="correct", correct=4)
    config = json.loads((restored.path / "adapter_config.json").read_text())
    names = {key.partition(".lora_")[0] for key in load_file(restored.path / "adapter_model.safetensors")}
    assert len(names) == 42
    assert not config["layers_to_transform"]
    assert config["r"] == restored.metrics["rank"] == 8


def test_an_adapted_embedding_is_refused(lab: Lab, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "theirs", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ModelError, match="lora_embedding"):
        lab.restore(str(folder), 16, trained_on="nf4", task="tiny_math", mode="correct")


def test_the_loss_alone_gives_both_metrics_of_its_pass(lab: Lab) -> None:
    step = lab.result(lab.base("embedded:tiny", 16), "tiny_math", limit=6).replaced(generate=False)
    result = lab.make(step)
    assert result.metrics["primary"] == "answer_loss"
    assert {"exact_match,teacher-forced", "p_gold", "answer_loss"} == result.metrics["metrics"].keys()
    file = next(result.path.glob("samples_*.jsonl"))
    for line in map(json.loads, file.read_text().splitlines()):
        assert line["p_gold"] == pytest.approx(float(torch.tensor(-line["answer_nll"], dtype=torch.float64).exp()))
        assert line["exact_match,teacher-forced"] in (0.0, 1.0)
