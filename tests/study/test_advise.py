"""Candidates of an adapter, its rows cut in two, and a whole advice on real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from given import save_adapter
from safetensors import safe_open

import plr.bases.quantize as room
from plr import Lab
from plr.core.specs import Evaluate, Quantize, TaskSpec
from plr.errors import DataError, ModelError, UsageError
from plr.evaluation.samples import document_of
from plr.report.advice import advice_words
from plr.study.advise import Inquiry, row_sets
from plr.study.resolve import Resolver
from plr.tasks.data.rows import draw, load_split


def places(asked: Inquiry) -> list[tuple[int, int, str]]:
    return [(cell.train_bits, cell.restore_bits, cell.mode) for cell in asked.cells]


@pytest.fixture
def lab(home: Path) -> Lab:
    return Lab(home, offline=True, device="cpu", dtype="float32")


@pytest.fixture
def math() -> TaskSpec:
    return Resolver(offline=True).task("tiny_math")


def test_candidates_of_an_adapter_of_plr(lab: Lab) -> None:
    asked = lab.inquiry(lab.adapter(bits=4, task="tiny_math"), bits=(16, 8, 4))
    assert places(asked) == [
        (4, 4, "keep"), (4, 16, "restore"), (4, 16, "auto"), (4, 8, "restore"), (4, 8, "requantize"), (4, 8, "auto"),
        (4, 4, "requantize"),
    ]  # fmt: skip
    steps = [cell.step for cell in asked.cells]
    assert {(step.split, step.limit, step.generate) for step in steps} == {("test", asked.rows.limit, True)}
    plain = lab.inquiry(lab.adapter(bits=4, task="tiny_math"), bits=(16,), modes=("restore", "roundtrip"))
    assert places(plain) == [(4, 4, "keep"), (4, 4, "roundtrip"), (4, 16, "restore")]


def test_a_method_that_cannot_be_merged_has_no_merged_candidate(lab: Lab) -> None:
    asked = lab.inquiry(lab.adapter(bits=4, task="tiny_math", adapter="bottleneck"), bits=(16, 8))
    assert places(asked) == [(4, 4, "keep"), (4, 16, "restore"), (4, 8, "restore"), (4, 8, "auto")]


def test_candidates_of_an_adapter_of_another_tool(lab: Lab, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    own = lab.inquiry(str(adapter), "tiny_math", trained_on="nf4", bits=(16, 8, 4))
    assert places(own)[:4] == [(4, 4, "keep"), (4, 16, "restore"), (4, 16, "auto"), (4, 8, "restore")]
    bases = {(cell.restore_bits, cell.mode): cell.step.base for cell in own.cells}
    methods = {place: base.quantization.method for place, base in bases.items() if isinstance(base, Quantize)}
    assert methods == {
        (4, "keep"): "nf4", (8, "restore"): "gptq", (8, "requantize"): "gptq", (8, "auto"): "gptq", (4, "requantize"): "nf4"
    }  # fmt: skip
    nobody = lab.inquiry(str(adapter), "tiny_math", bits=(16, 8))
    assert "auto" not in {cell.mode for cell in nobody.cells}
    unknown = lab.inquiry(str(adapter), "tiny_math", bits=(16, 4), modes=("restore",))
    assert places(unknown) == [(0, 16, "restore"), (0, 4, "restore")]
    with pytest.raises(UsageError, match=r"one candidate: there is nothing to compare"):
        lab.inquiry(str(adapter), "tiny_math", trained_on="16", bits=(16,))
    with pytest.raises(UsageError, match=r"task"):
        lab.inquiry(str(adapter), trained_on="16")


def test_rows_are_cut_in_two_by_one_draw(math: TaskSpec) -> None:
    parts = row_sets(math, 60, 30)
    assert (len(parts.choosing), len(parts.certifying), parts.limit) == (30, 60, 90)
    assert not parts.choosing & parts.certifying
    split = load_split(math, "test").examples
    seed = Evaluate.model_fields["limit_seed"].default
    assert parts.choosing | parts.certifying == {document_of(row.id) for row in draw(split, 90, seed)}
    whole = row_sets(math, 10**6, 10**6)
    assert whole.limit == len(split)
    assert abs(len(whole.choosing) - len(whole.certifying)) <= 1
    with pytest.raises(DataError, match=r"expected: at least 10 rows for each"):
        row_sets(math, 9, 30)


def test_an_advice_on_real_models(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = lab.train(
        bits=4, task="tiny_math", overrides=["train.epochs=1", "train.train_limit=16", "quantize.samples=8"]
    )
    assert isinstance(adapter.step.base, Quantize)  # type: ignore[union-attr]
    advice = lab.advise(adapter, bits=(16,), modes=("restore",), rows=12, select_rows=10, max_new_tokens=4)
    own, source = advice.candidates
    assert (own.own, source.own, len(advice.cells[0].samples["answer_loss"])) == (True, False, 12)
    assert own.size is not None
    assert source.size is not None
    assert own.size < source.size
    base = lab.store.require(adapter.step.base)  # type: ignore[union-attr]
    with safe_open(base.path / "model.safetensors", "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    wide = {key for key in tensors if key.endswith((".weight", ".bias"))}
    bytes_ = sum(t.numel() * (2 if key in wide else t.element_size()) for key, t in tensors.items())
    assert own.size == bytes_ + (adapter.path / "adapter_model.safetensors").stat().st_size
    whole = lab.evaluate(adapter, limit=22, max_new_tokens=4)
    losses = [one.value("answer_loss") or 0.0 for one in (own.chosen_on, own.certified_on)]
    assert whole.metrics["metrics"]["answer_loss"]["value"] == pytest.approx((10 * losses[0] + 12 * losses[1]) / 22)
    assert whole.record.fingerprint == own.certified_on.fingerprint, "the result is that of plr eval"

    options = ["--bits", "16", "--modes", "restore", "--rows", "12", "--select-rows", "10", "--max-new-tokens", "4"]
    common = [*options, "--offline", "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path / "out")]
    code, out, error = run(monkeypatch, capsys, "advise", adapter.path.name, *common)
    assert code == 0, error
    assert advice_words(advice) in " ".join(out.split())
    assert f"next: plr restore {adapter.path.name} --bits {advice.deploy.bits}" in out
    value = json.loads(run(monkeypatch, capsys, "advise", adapter.path.name, *common, "--json")[1])
    assert value["sentence"] == advice_words(advice)
    assert sorted(Path(file).name for file in value["files"].values()) == [
        "advice.json",
        "report.html",
        "results.csv",
        "table.md",
    ]


def test_one_candidate_that_fails_stops_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = lab.train(
        bits=4, task="tiny_math", overrides=["train.epochs=1", "train.train_limit=16", "quantize.samples=8"]
    )
    asked = lab.inquiry(adapter, bits=(16, 8), modes=("restore",), rows=12, select_rows=10, max_new_tokens=4)

    def refuse(*args: object, **kwargs: object) -> None:
        raise ModelError("this base is refused")

    monkeypatch.setattr(room.SourceHolder, "quantize", refuse)
    advice = lab.advise(asked)
    assert [one.bits for one in advice.candidates] == [4, 16]
    assert advice.failed[0][0] == "8 bits, restore"
