"""A training that diverges stops at the first loss that is not finite, and nothing of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.errors import TrainingError
from plr.lab import Lab


def test_a_diverged_training_is_no_success(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, dtype="float32")
    settings = ("train.train_limit=64", "train.validation_limit=8", "train.learning_rate=1.0e+18")
    with pytest.raises(TrainingError, match=r"diverged: the (training|validation) loss is (nan|inf)") as caught:
        lab.train(bits=16, task="tiny_sql", overrides=settings)
    assert "train.learning_rate" in str(caught.value.hint)
    assert lab.store.all("adapter") == []
