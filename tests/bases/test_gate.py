"""The gate on the embedded base: against the plain definitions, and the rule of its verdict case by case."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from plr.bases import gate as gates
from plr.bases.gate import Gate
from plr.bases.load import Loaded, load_source
from plr.bases.resolve import resolve_model
from plr.core.specs import Calibration, CalibrationKnobs
from plr.errors import DataError, ModelError
from plr.lm import answer_loss, encode_pair
from plr.tasks.data.rows import calibration_text, load_split, read_texts, resolve_file, resolve_task, undrawn_texts

WORDS = ["apples", "pears", "carts", "trains", "boxes", "hens", "coins", "ships", "bells", "lamps", "books", "shoes"]
DOCUMENTS = [f"Tom has {i} {a} and {b}. How many are there?" for i, a in enumerate(WORDS) for b in WORDS if a != b]


@pytest.fixture(scope="module")
def source() -> Loaded:
    return load_source(resolve_model("embedded:tiny"), dtype=torch.float32, device="cpu")


@pytest.fixture
def loaded(source: Loaded) -> Loaded:
    return Loaded(copy.deepcopy(source.model), source.tokenizer)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "GATE_ROWS", 5)
    monkeypatch.setattr(gates, "TEXT_TOKENS", 200)


@pytest.fixture
def task() -> Any:
    return resolve_task("tiny_sql")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS), encoding="utf-8")
    return path


def damage(model: Any, by: float) -> Any:
    """Noise on the layers that quantizing replaces."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter += by * parameter.std() * torch.randn_like(parameter)
    return model


def nats(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[t-1, vocabulary]` in float64, the row alone."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


def encoded(loaded: Loaded, task: Any) -> list[list[int]]:
    pairs = [(row.prompt, row.target) for row in load_split(task, "validation").examples[:5]]
    return [prompt + target for prompt, target in (encode_pair(loaded.tokenizer, *pair) for pair in pairs)]


def test_measures_are_the_plain_definitions(source: Loaded, loaded: Loaded, task: Any) -> None:
    gate = Gate(loaded, Calibration(task=task))
    damage(loaded.model, 0.5)
    record = gate.measure()
    rows = encoded(source, task)
    p, q = ([nats(model, ids) for ids in rows] for model in (source.model, loaded.model))
    targets = torch.tensor([token for ids in rows for token in ids[1:]])[:, None]
    P, Q = torch.cat(p), torch.cat(q)
    (text,) = record["texts"]
    assert text["text"] == "task tiny_sql, validation"
    assert (text["rows"], text["tokens"], text["left_out"]) == (5, len(targets), 0)
    assert text["perplexity_16bit"] == pytest.approx(math.exp(-P.gather(1, targets).mean()), rel=1e-4)
    assert text["perplexity"] == pytest.approx(math.exp(-Q.gather(1, targets).mean()), rel=1e-4)
    assert text["kl"] == pytest.approx(float((P.exp() * (P - Q)).sum(-1).mean()), rel=1e-3)
    assert text["top1_agreement"] == pytest.approx(float((P.argmax(-1) == Q.argmax(-1)).double().mean()), abs=1e-6)
    counts = Counter(targets[:, 0].tolist())
    assert text["context_free"] == pytest.approx(
        -sum(n * math.log(n / len(targets)) for n in counts.values()) / len(targets)
    )
    known = text["context_free"] - math.log(text["perplexity_16bit"])
    assert text["kept"] == pytest.approx((text["context_free"] - math.log(text["perplexity"])) / known)


def test_loss_is_the_answer_loss_of_both_models(source: Loaded, loaded: Loaded, task: Any) -> None:
    gate = Gate(loaded, Calibration(task=task))
    damage(loaded.model, 0.5)
    record = gate.measure()
    pairs = [(row.prompt, row.target) for row in load_split(task, "validation").examples[:5]]
    for name, model in (("loss_16bit", source.model), ("loss", loaded.model)):
        losses = answer_loss(model, source.tokenizer, pairs)
        assert record[name] == pytest.approx(sum(x.nll for x in losses) / sum(x.tokens for x in losses), rel=1e-4)
    assert record["rows"] == 5
    assert record["chance"] == pytest.approx(math.log(source.model.config.vocab_size))


def test_model_that_did_not_change_is_ok_and_one_gate_serves_several_widths(loaded: Loaded, task: Any) -> None:
    model = loaded.model
    gate = Gate(loaded, None, task=task)
    assert gate.measure()["texts"][0]["kl"] < 1e-6
    assert gate.measure()["texts"][0]["top1_agreement"] == 1
    assert gate.measure()["verdict"] == "ok"
    kls = []
    for by in (0.1, 0.3, 1.0):
        loaded.model = damage(copy.deepcopy(model), by)
        kls.append(gate.measure()["texts"][0]["kl"])
    assert kls == sorted(kls)
    loaded.model = model
    assert gate.measure()["texts"][0]["kl"] < 1e-6, "the reference is what it was"


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [
        (-3.0, "broken: at or above chance"),
        (0.0, "broken: at or above chance"),
        (0.05, "damaged: no better than guessing by frequency (task tiny_sql, validation)"),
    ],
)
def test_ruined_base_is_flagged(scale: float, verdict: str, loaded: Loaded, task: Any) -> None:
    """Logits times a small number come close to a flat guess from below: under chance, and useless all the same."""
    gate = Gate(loaded, None, task=task)
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(scale)
    record = gate.measure()
    assert record["verdict"] == verdict
    assert (record["loss"] < record["chance"]) == verdict.startswith("damaged")


def test_a_loss_that_is_no_number_is_an_error(loaded: Loaded, task: Any) -> None:
    gate = Gate(loaded, None, task=task)
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="gives a loss of nan"):
        gate.measure()


def texts(**kept: float | None) -> list[dict[str, Any]]:
    return [{"text": k, "perplexity_16bit": 10.0, "perplexity": 20.0, "kept": v} for k, v in kept.items()]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        ({"texts": texts(a=1.02, b=0.5), "loss_16bit": 1.0, "loss": 2.0}, "ok"),
        ({"texts": texts(a=None)}, "ok"),
        ({"texts": texts(a=0.9, b=0.47, c=0.2)}, "damaged: 20% left of what context tells the 16-bit model (c)"),
        ({"texts": texts(a=0.9, b=-0.1)}, "damaged: no better than guessing by frequency (b)"),
        ({"texts": texts(a=0.9), "loss_16bit": 1.0, "loss": 5.0}, "broken: at or above chance"),
        ({"texts": [texts(a=0.9)[0] | {"perplexity": 100.0}]}, "broken: at or above chance"),
        (
            {"texts": [texts(a=None)[0] | {"perplexity": 101.0, "perplexity_16bit": 102.0}]},
            "broken: at or above chance, as is the 16-bit model",
        ),
        ({"texts": texts(a=0.9), "loss_16bit": 4.7, "loss": 5.0}, "ok"),
        ({"texts": [{"text": "a", "not_measured": "empty"}]}, "not measured: empty"),
        ({"texts": [{"text": "a", "not_measured": "empty"}, *texts(b=1.0)]}, "ok"),
    ],
)
def test_verdict(record: dict[str, Any], verdict: str) -> None:
    assert gates._verdict({"chance": math.log(100.0), **record}, "") == verdict


def test_calibration_file_is_measured_on_documents_that_were_not_drawn(loaded: Loaded, file: Path) -> None:
    calibration = resolve_file(str(file), CalibrationKnobs(samples=20, max_length=16))
    gate = Gate(loaded, calibration)
    (text,) = gate.measure()["texts"]
    assert text["text"] == "texts.jsonl, documents not drawn"
    assert 100 < text["tokens"] <= 200
    drawn = {prompt for prompt, _ in calibration_text(calibration).pairs}
    measured = [str(loaded.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in gate.texts[0].rows]
    whole = {one for one in DOCUMENTS if any(one.startswith(part) for part in measured if part)}
    assert whole
    assert not whole & drawn
    assert max(map(len, gate.texts[0].rows)) <= 16


def test_file_that_was_drawn_whole_leaves_nothing_and_the_record_says_so(loaded: Loaded, file: Path) -> None:
    record = Gate(loaded, resolve_file(str(file), CalibrationKnobs(samples=1000))).measure()
    assert record["texts"] == [
        {"text": "texts.jsonl, documents not drawn", "not_measured": "every document of the file calibrates"}
    ]
    assert record["verdict"] == "not measured: every document of the file calibrates"
    assert "loss" not in record


def test_guard_of_a_file_is_measured_too(loaded: Loaded, file: Path, task: Any) -> None:
    record = Gate(loaded, resolve_file(str(file), CalibrationKnobs(samples=20), guard=task)).measure()
    assert [text["text"] for text in record["texts"]] == [
        "task tiny_sql, validation",
        "texts.jsonl, documents not drawn",
    ]
    assert record["rows"] == 5
    assert record["loss"] > 0


def test_users_text_is_measured_without_what_calibrates(loaded: Loaded, file: Path, tmp_path: Path) -> None:
    calibration = resolve_file(str(file), CalibrationKnobs(samples=20))
    drawn = [prompt for prompt, _ in calibration_text(calibration).pairs]
    own = tmp_path / "own.txt"
    own.write_text("\n\n".join([drawn[0].upper(), "The ship left the port.", drawn[1]]), encoding="utf-8")
    gate = Gate(loaded, calibration, text=own)
    (row,) = gate.texts[1].rows
    assert loaded.tokenizer.decode(row, skip_special_tokens=True) == "The ship left the port."
    assert [text["text"] for text in gate.measure()["texts"]][1] == "own.txt"


def test_without_calibration_the_users_text_is_enough(loaded: Loaded, tmp_path: Path, task: Any) -> None:
    rows = load_split(task, "validation").examples
    (tmp_path / "own.txt").write_text("\n\n".join(" ".join(row.prompt.split()) for row in rows), encoding="utf-8")
    record = Gate(loaded, None, text=str(tmp_path / "own.txt")).measure()
    assert 100 < record["texts"][0]["tokens"] <= 200
    assert record["verdict"] == "ok"


def test_nothing_to_measure_on(loaded: Loaded) -> None:
    record = Gate(loaded).measure()
    assert record == {
        "rows": 0,
        "chance": pytest.approx(math.log(loaded.model.config.vocab_size)),
        "verdict": "not measured: no task and no text to measure on",
        "texts": [],
    }


def test_text_that_is_not_there_is_an_error(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no text file"):
        Gate(loaded, None, text=tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("bert", "an encoder predicts no next token"),
        ("llama", "LlamaForSequenceClassification is no language model"),
    ],
    ids=["encoder", "decoder with a head"],
)
def test_model_without_an_output_head_is_not_measured_and_the_record_says_why(
    kind: str, why: str, source: Loaded, file: Path
) -> None:
    model = tiny_model(kind, head="labels", vocab_size=1000, num_hidden_layers=1, pad_token_id=0)
    record = Gate(Loaded(model, source.tokenizer), None, text=file).measure()
    assert record["verdict"].startswith(f"not measured: {why}")
    assert why in record["texts"][0]["not_measured"]
    assert record["texts"][0]["text"] == file.name


def test_rows_longer_than_the_positions_are_counted(loaded: Loaded, task: Any) -> None:
    lengths = list(map(len, encoded(loaded, task)))
    loaded.model.config.max_position_embeddings = sorted(lengths)[2] - 1
    (text,) = Gate(loaded, None, task=task).measure()["texts"]
    assert text["left_out"] == sum(n > sorted(lengths)[2] for n in lengths)
    assert text["rows"] + text["left_out"] == 5
    loaded.model.config.max_position_embeddings = 4
    assert Gate(loaded, None, task=task).measure()["verdict"] == "not measured: 5 rows, none fits the model"


def test_undrawn_and_drawn_are_the_file(file: Path) -> None:
    calibration = resolve_file(str(file), CalibrationKnobs(samples=40, seed=7))
    drawn = [prompt for prompt, _ in calibration_text(calibration).pairs]
    assert sorted([*drawn, *undrawn_texts(calibration)]) == sorted(DOCUMENTS)


def test_copies_of_drawn_documents_are_not_undrawn(tmp_path: Path) -> None:
    path = tmp_path / "copies.txt"
    path.write_text("\n\n".join(["One text.", "one  TEXT."] * 5 + ["Another."]), encoding="utf-8")
    for seed in range(5):
        calibration = resolve_file(str(path), CalibrationKnobs(samples=1, seed=seed))
        (drawn,) = (prompt for prompt, _ in calibration_text(calibration).pairs)
        left = undrawn_texts(calibration)
        assert left == (["Another."] if drawn != "Another." else left)
        assert len(left) == (1 if drawn != "Another." else 10)


def test_file_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n \n")
    with pytest.raises(DataError, match="holds no text"):
        read_texts(tmp_path / "empty.txt")
