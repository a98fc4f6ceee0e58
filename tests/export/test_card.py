"""Model cards and evaluation results, read back by huggingface_hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from plr import Lab
from plr.core.specs import Evaluate, TaskSpec
from plr.core.store import Artifact
from plr.errors import UsageError
from plr.export.card import MADE, card_text, eval_results, scores_of

QUICK = ["train.epochs=1", "train.train_limit=32", "quantize.samples=8"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), dtype="float32", device="cpu", offline=True)


@pytest.fixture(scope="module")
def result(lab: Lab) -> Artifact:
    """An adapter scored on its own base (the result), and on 16 bits."""
    adapter = lab.train(bits=4, task="tiny_math", overrides=QUICK)
    lab.evaluate(lab.restore(adapter, bits=16), limit=20, max_new_tokens=4)
    return lab.evaluate(adapter, limit=20, max_new_tokens=4)


def test_a_card_says_what_it_is_and_how_it_scores(lab: Lab, result: Artifact) -> None:
    text = lab.card(str(result.path)).text
    card: Any = ModelCard(text)
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags
    assert card.data.license == "apache-2.0"
    entries = {entry.metric_type: entry for entry in card.data.eval_results}
    for name, metric in result.metrics["metrics"].items():
        scale = 100 if metric.get("unit") == "percent" else 1
        assert entries[name].metric_value == pytest.approx(scale * metric["value"], abs=1e-4)
        assert entries[name].dataset_args["n"] == metric["n"]
    primary = result.metrics["primary"]
    assert f"| tiny_math | 4 → 4 | {primary} |" in text
    assert f"| tiny_math | 4 → 16 | {primary} |" in text
    assert "quantized to 4 bits (gptq)" in text
    assert result.record.fingerprint not in text
    assert result.step.target.fingerprint in text  # type: ignore[union-attr]
    assert str(lab.store.home) not in text


def test_cards_of_a_base_and_of_a_checkpoint(lab: Lab, result: Artifact) -> None:
    adapter = result.step.target.adapter  # type: ignore[union-attr]
    base = card_text(adapter.base, lab.store)
    assert "`embedded:tiny` quantized to 4 bits (gptq)" in base.replace("`tiny`", "`embedded:tiny`")
    read: Any = ModelCard(base)
    assert read.data.library_name == "transformers"
    merged = card_text(lab.restored(adapter, 16, merge=True), lab.store)
    read = ModelCard(merged)
    assert "merged" in read.data.tags


def test_it_is_written_beside_what_it_is_of(lab: Lab, result: Artifact, tmp_path: Path) -> None:
    written = lab.card(str(result.path), tmp_path / "out")
    assert [file.name for file in written.files] == ["README.md"]
    assert written.left_out == ("tiny_math: the rows are not those of a data set on the Hub",)
    lab.card(str(result.path), tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("# mine")
    with pytest.raises(UsageError, match=r"plr did not write it"):
        lab.card(str(result.path), tmp_path / "out")
    assert MADE in written.text


def test_results_of_data_sets_of_the_hub(lab: Lab, result: Artifact) -> None:
    step = result.step
    assert isinstance(step, Evaluate)
    score = next(one for one in scores_of(step.target, lab.store) if one.primary)
    gsm8k = TaskSpec(name="gsm8k", version=1, revision="a" * 40)
    whole = replace(score, step=step.replaced(task=gsm8k, limit=None))
    files, left = eval_results([whole])
    assert left == []
    [entry] = parse_eval_result_entries(yaml.safe_load(files["gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("openai/gsm8k", "main", "a" * 40)
    assert entry.value == pytest.approx(score.metric.scale * (score.value or 0.0))
    assert f"n = {score.n}" in (entry.notes or "")
    part, why = eval_results([replace(score, step=step.replaced(task=gsm8k))])
    assert (part, why) == ({}, ["gsm8k: 20 rows, and not the whole split"])
