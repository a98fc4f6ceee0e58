"""The loss of a batch is the sum of the losses of its rows, however it is padded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from letters import Letters
from tiny_models import tiny_model

from plr.bases.load import Loaded
from plr.errors import DataError
from plr.tasks import Example
from plr.training.objectives import IGNORE, AnswerCollator, AnswerObjective

ROWS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 2]), ([14, 15, 16, 17, 18], [2])]
SHAPE = {"num_layers": 2, "token_dim": 32, "num_attention_heads": 4, "num_transformer_submodules": 1}
ADAPTERS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", **SHAPE),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", **SHAPE),
}


def make_model(adapter: str) -> Any:
    return peft.get_peft_model(tiny_model("llama", vocab_size=32), ADAPTERS[adapter]()).eval()


def objective(model: Any) -> AnswerObjective:
    rows = [Example(f"train-{i}", {}, "ab" * (i + 1), "c" * (4 - i)) for i in range(3)]
    made = AnswerObjective(Loaded(model, Letters()), rows, rows, 64)  # type: ignore[arg-type]
    made.bind(model)
    return made


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_batch_loses_what_its_rows_lose_alone(adapter: str) -> None:
    """Fails for virtual tokens with padding between them and the text."""
    model = make_model(adapter)
    work = objective(model)

    def loss(rows: list[Any]) -> float:
        batch = work.collate(rows)
        labels = batch.pop("labels")
        batch.pop("shift_labels")
        with work.serving():
            return work.loss(model, batch, labels)[0].item()

    assert loss(work.rows) == pytest.approx(sum(loss([row]) for row in work.rows), rel=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_training_and_validation_measure_the_same(adapter: str) -> None:
    model = make_model(adapter)
    work = objective(model)
    batch = work.collate(work.rows)
    labels = batch.pop("labels")
    batch.pop("shift_labels")
    items = int((labels != IGNORE).sum())
    with work.serving():
        loss = work.loss(model, batch, labels)[0].item()
    assert loss / items == pytest.approx(work.validate(model)["loss"], rel=1e-5)


@pytest.mark.parametrize("right", [False, True])
def test_labels_stand_where_the_next_token_is_predicted(right: bool) -> None:
    batch = AnswerCollator(0, position_ids=True, right=right)(ROWS)
    kept = batch["labels"].shape[1]
    ids, labels = batch["input_ids"][:, -kept:], batch["labels"]
    assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])
    assert [int((row != IGNORE).sum()) for row in labels] == [2, 4, 1]
    assert ("position_ids" in batch) is not right
    assert batch["attention_mask"].sum(1).tolist() == [5, 5, 6]


def test_a_row_that_is_too_long_is_named() -> None:
    model = SimpleNamespace()
    row = Example("train-7", {}, "ab" * 40, "c")
    with pytest.raises(DataError, match="row train-7 has 82 tokens"):
        AnswerObjective(Loaded(model, Letters()), [row], [row], 64)  # type: ignore[arg-type]
