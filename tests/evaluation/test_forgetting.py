"""What an adapter makes its base forget: the worker's laws, and the command on the embedded base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st

from plr.core.specs import Restore
from plr.core.store import Artifact
from plr.errors import UsageError
from plr.evaluation.forgetting import check_writes, chunks, text_shift
from plr.lab import Lab

TEXT = "The train leaves at nine.\n\nTom has 3 apples and 4 pears. How many fruits are there?\n\nSELECT name FROM t"
SMALL = ("train.train_limit=16", "train.validation_limit=4", "train.evaluations_per_epoch=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forgetting")


@pytest.fixture(scope="module")
def trained(store: Path) -> Artifact:
    return Lab(home=store).train(bits=16, task="tiny_math", overrides=SMALL)


@given(st.lists(st.text(alphabet="ab c\n", max_size=40), max_size=8), st.integers(3, 30))
def test_chunks_keep_every_letter_in_order(texts: list[str], size: int) -> None:
    found = list(chunks(texts, size))
    assert all(len(chunk) <= size for chunk in found)
    assert "".join("".join(found).split()) == "".join("".join(texts).split())


def test_a_trained_adapter_changes_the_loss_of_other_text(store: Path, trained: Artifact) -> None:
    here = Lab(home=store)
    step = here.restored(trained, 16)
    shift = text_shift(step, TEXT.split("\n\n"), here.store, here.runtime())
    assert len(shift.before) == len(shift.after) == 1
    assert shift.perplexity_before == pytest.approx(math.exp(shift.before[0]))
    assert shift.perplexity_after == pytest.approx(math.exp(shift.after[0]))
    assert shift.perplexity_after != shift.perplexity_before
    assert shift.tokens > 20


def test_the_token_budget_is_kept_by_whole_chunks(store: Path, trained: Artifact) -> None:
    here = Lab(home=store)
    texts = ["word " * 290] * 5
    few = text_shift(here.restored(trained, 16), texts, here.store, here.runtime(), tokens=5)
    assert len(few.before) == 1


def test_a_checkpoint_is_no_adapter(store: Path, trained: Artifact) -> None:
    here = Lab(home=store)
    step = Restore(adapter=trained.step, base=trained.step.base, mode="keep", merge=True)
    with pytest.raises(UsageError, match="merged checkpoint"):
        text_shift(step, [TEXT], here.store, here.runtime())


def test_an_adapter_with_a_head_has_no_perplexity(trained: Artifact) -> None:
    task = trained.step.task.model_copy(update={"name": "glue_cola"})
    step = Restore(adapter=trained.step.model_copy(update={"task": task}), base=trained.step.base, mode="keep")
    with pytest.raises(UsageError, match="trained with a classification head"):
        check_writes(step)


def test_the_command(
    store: Path, trained: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLR_HOME", str(store))
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "text.txt"
    file.write_text(TEXT)

    def found(*words: str) -> Any:
        code, out, err = run(monkeypatch, capsys, "forgetting", trained.fingerprint[:12], *words, "--json")
        assert code == 0, err
        return json.loads(out)

    both = found("--text", str(file), "--task", "tiny_sql", "--limit", "4")
    text, first, loss = both["rows"]
    assert (text["what"], text["metric"], text["n"]) == ("text.txt", "perplexity", 1)
    assert text["change"] == pytest.approx(math.log(text["after"] / text["before"]))
    assert (first["what"], first["n"], loss["metric"]) == ("tiny_sql", 4, "answer_loss")
    assert loss["change"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["low"] <= loss["change"] <= loss["high"]
    assert found("--limit", "4")["rows"] == both["rows"][1:]  # the embedded base's other task, from the store
    monkeypatch.setenv("COLUMNS", "72")
    code, out, _ = run(monkeypatch, capsys, "forgetting", "--text", str(file))
    assert code == 0
    assert "…" not in out, "no number is cut"
    assert "text.txt" in out
    assert "nats a token" in out


def test_nothing_to_measure(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(monkeypatch, capsys, "forgetting")
    assert code == 2
    assert "holds no adapter yet" in err


def test_a_text_that_is_not_there(
    store: Path, trained: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLR_HOME", str(store))
    code, _, err = run(monkeypatch, capsys, "forgetting", "--text", "nowhere.txt")
    assert code == 2
    assert "there is no text nowhere.txt" in err
