"""The rule of an advice on candidates whose numbers can be worked out by hand, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plr import Lab
from plr.core.store import Store
from plr.report.advice import Advice, Candidate, advice_json, advice_notes, advice_rows, advice_words, judge
from plr.report.write import write_advice
from plr.study.advise import Inquiry, restricted
from plr.study.cells import CellResult

MakeCell = Callable[..., CellResult]
CHOOSING, CERTIFYING = 40, 200


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Inquiry:
    """Candidates of an adapter at 4 bits: nothing is made."""
    lab = Lab(tmp_path_factory.mktemp("home"), offline=True, device="cpu", dtype="float32")
    adapter = lab.adapter(bits=4, task="tiny_math")
    return lab.inquiry(adapter, bits=(16, 3), modes=("restore",), rows=CERTIFYING, select_rows=CHOOSING)


@pytest.fixture
def judged(asked: Inquiry, cell: MakeCell) -> Callable[..., Advice]:
    """``judged((l, right on choosing rows, right on certifying rows, bytes), ...)``; those right come first."""

    def make(
        *rows: tuple[int, int, int, int], k: int = 4, own: int | None = 4, losses: tuple[float, ...] = ()
    ) -> Advice:
        candidates = []
        for index, (ell, chosen, certified, size) in enumerate(rows):
            loss = losses[index] if losses else 1.0
            right = "1" * chosen + "0" * (CHOOSING - chosen) + "1" * certified + "0" * (CERTIFYING - certified)
            whole = cell(k, ell, right, losses=[loss] * len(right))
            first = [f"d{i}" for i in range(CHOOSING)]
            rest = [f"d{i}" for i in range(CHOOSING, len(right))]
            on = [restricted(whole, ids) for ids in (first, rest)]
            candidates.append(Candidate(ell, whole.mode, "gptq", ell == own, on[0], on[1], size))
        return judge(asked, candidates)

    return make


def test_a_gain_that_is_proven_on_the_other_rows(judged: Callable[..., Advice]) -> None:
    advice = judged((4, 20, 100, 100), (16, 25, 120, 300))
    assert advice.reason == "gain"
    assert advice.deploy.bits == 16
    assert advice.gain is not None
    assert advice.gain.difference == pytest.approx(0.1)
    assert advice.gain.n == CERTIFYING
    text = advice_words(advice)
    assert text.startswith("Deploy tiny-4bit-tiny_math-lora-s0 on 16 bits: exact_match,first-answer 60.00 % (n = 200)")
    assert "+10.00 points (95 % interval +6.00 to +14.50, p = 1.9e-06) against its own 4-bit base (50.00 %" in text


def test_best_on_the_choosing_rows_alone_stays_where_it_was(judged: Callable[..., Advice]) -> None:
    advice = judged((4, 20, 100, 100), (16, 30, 101, 300))
    assert (advice.reason, advice.deploy.bits, advice.best.bits) == ("not proven", 4, 16)
    assert (
        "16 bits was best on the 40 rows that chose; on the other 200 no gain is proven: +0.50 points"
        in advice_words(advice)
    )
    worse = judged((4, 20, 100, 100), (16, 30, 80, 300))
    assert (worse.reason, worse.deploy.bits) == ("not proven", 4)
    assert "on the other 200 it loses: -10.00 points" in advice_words(worse)


def test_rows_that_certify_do_not_choose(judged: Callable[..., Advice]) -> None:
    advice = judged((4, 20, 100, 100), (16, 10, 180, 300))
    assert (advice.reason, advice.deploy.bits, advice.best.bits) == ("own is best", 4, 4)
    assert advice.gain is not None
    assert advice.gain.difference == pytest.approx(0.4)
    assert "It was best on the 40 rows that chose, too; 16 bits against it: +40.00 points" in advice_words(advice)


def test_fewer_bytes_where_the_loss_is_small(judged: Callable[..., Advice]) -> None:
    small = judged((4, 20, 100, 100), (3, 20, 99, 80))
    assert (small.reason, small.deploy.bits) == ("fewer bytes", 3)
    assert "Not detectably worse than its own 4-bit base" in advice_words(small)
    large = judged((4, 20, 100, 100), (3, 19, 80, 80))
    assert (large.reason, large.deploy.bits) == ("own is best", 4)


def test_a_proven_gain_is_not_given_up_for_bytes(judged: Callable[..., Advice]) -> None:
    advice = judged((4, 20, 100, 100), (16, 25, 108, 300))
    assert (advice.reason, advice.deploy.bits) == ("gain", 16), (
        "the own base is within the margin, and without the gain"
    )
    both = judged((4, 20, 100, 100), (16, 25, 120, 300), (8, 24, 120, 150))
    assert (both.reason, both.deploy.bits) == ("fewer bytes", 8)
    assert "Not detectably worse than 16 bits" in advice_words(both)


def test_where_nobody_knows_the_own_base(judged: Callable[..., Advice]) -> None:
    advice = judged((16, 20, 100, 300), (8, 22, 130, 150), k=0, own=None)
    assert (advice.reference.bits, advice.deploy.bits, advice.reason) == (16, 8, "gain")
    kept = judged((16, 20, 100, 300), (8, 10, 50, 150), k=0, own=None)
    assert advice_words(kept).startswith("Deploy tiny-4bit-tiny_math-lora-s0 on 16 bits")
    assert advice_rows(kept)[0][0] == "? → 16 *"


def test_the_loss_decides_where_nothing_is_answered(judged: Callable[..., Advice]) -> None:
    advice = judged((4, 0, 0, 100), (16, 0, 0, 300), losses=(1.0, 0.5))
    assert (advice.metric.name, advice.why_metric) == ("answer_loss", "no candidate answers")
    assert (advice.deploy.bits, advice.reason) == (16, "gain")
    assert "No candidate answers: the answer loss decides." in advice_words(advice)


def test_equal_scores_are_told_apart_by_loss_then_bytes(judged: Callable[..., Advice]) -> None:
    assert judged((4, 20, 100, 100), (16, 20, 100, 300), losses=(1.0, 0.5)).best.bits == 16
    assert judged((4, 20, 100, 100), (16, 20, 100, 300)).best.bits == 4


def test_a_metric_of_all_rows_at_once_is_left_to_the_loss(asked: Inquiry, cell: MakeCell) -> None:
    candidates = []
    for ell, loss in ((4, 1.0), (16, 0.5)):
        whole = cell(4, ell, "10" * 20, losses=[loss] * 40)
        whole = replace(whole, samples={**whole.samples, whole.primary: dict.fromkeys(whole.samples[whole.primary])})
        on = restricted(whole, [f"d{i}" for i in range(40)])
        assert whole.primary not in on.metrics
        candidates.append(Candidate(ell, whole.mode, "gptq", ell == 4, on, on, 1))
    advice = judge(asked, candidates)
    assert advice.why_metric == "no row has a score of the primary metric"
    assert advice.deploy.bits == 16


def test_what_is_written(judged: Callable[..., Advice], asked: Inquiry, tmp_path: Path) -> None:
    advice = judged((4, 20, 100, 100), (16, 25, 120, 300), (3, 1, 2, 90))
    files = write_advice(advice, Store(tmp_path / "home"), tmp_path / "out")
    assert sorted(files) == ["csv", "html", "json", "table"]
    table, page = files["table"].read_text(), files["html"].read_text()
    assert table.startswith(advice_words(advice).replace("_", "\\_")) or advice_words(advice) in table
    assert "| 4 → 16 * |" in table.replace("\\*", "*").replace("**", "")
    assert "Candidates</h2>" in page
    assert ">4 → 16 *</th>" in page
    assert json.loads(files["json"].read_text()) == json.loads(json.dumps(advice_json(advice)))
    assert [one["restore_bits"] for one in advice_json(advice)["candidates"]] == [4, 16, 3]
    assert "on the 40 rows that choose" in advice_notes(advice)[0]
