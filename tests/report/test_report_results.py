"""CSV and contrasts of tiny studies, by hand."""

from __future__ import annotations

import csv
import io
import math
import random

import pytest

from plr.errors import PlrError
from plr.report.cells import ResultSet, average
from plr.report.results import COLUMNS, compare, contrasts, csv_text, gains, paired_scores, write_csv
from plr.study.cells import Measured

FIRST, STRICT, LOSS = "exact_match,first-answer", "exact_match,strict", "answer_loss"


def test_csv_has_the_promised_columns_and_one_line_a_metric(small):
    rows = list(csv.DictReader(io.StringIO(csv_text(small))))
    promised = "model, task, adapter, train_bits, restore_bits, mode, seed, metric, value, stderr, n, fingerprint"
    assert ", ".join(rows[0]) == ", ".join(COLUMNS) == promised
    assert len(rows) == 5 * 4 + 1
    restored = next(r for r in rows if (r["train_bits"], r["restore_bits"], r["metric"]) == ("4", "16", FIRST))
    assert (restored["mode"], restored["value"], restored["n"]) == ("restore", "0.75", "4")


def test_csv_failed_cell_is_a_line_without_value(small):
    rows = [
        row
        for row in csv.DictReader(io.StringIO(csv_text(small)))
        if row["restore_bits"] == "4" and row["train_bits"] == "2"
    ]
    assert [(row["metric"], row["value"], row["stderr"], row["n"]) for row in rows] == [(FIRST, "", "", "0")]


def test_csv_nan_and_none_are_empty(cell):
    odd = cell(16, 16, "10", extra={"a": Measured(math.nan, None, 2), "b": Measured(None, math.inf, 0)})
    values = {row["metric"]: row["value"] + row["stderr"] for row in csv.DictReader(io.StringIO(csv_text([odd])))}
    assert (values["a"], values["b"]) == ("", "")


def test_csv_bytes_do_not_depend_on_the_order_of_cells(small, tmp_path):
    write_csv(small, tmp_path / "one.csv")
    random.Random(0).shuffle(small)
    write_csv(small, tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one.csv", "two.csv"]


def test_csv_values_read_back_exactly(cell):
    third = cell(16, 16, "100")
    row = next(csv.DictReader(io.StringIO(csv_text([third]))))
    assert float(row["value"]) == 1 / 3


def test_contrasts_are_the_two_named_beforehand_at_each_k(small):
    found = [(c.kind, c.first, c.second, c.metric) for c in contrasts(small)]
    named = [
        ("gain", (4, 4), (4, 16)), ("shortfall", (16, 16), (4, 16)),
        ("gain", (2, 2), (2, 16)), ("shortfall", (16, 16), (2, 16)),
    ]  # fmt: skip
    assert found == [(*name, FIRST) for name in named] + [(*name, LOSS) for name in named]


def test_contrast_is_second_minus_first_with_its_discordant_documents(small):
    gain, short = contrasts(small)[:2]
    assert (gain.difference, gain.b, gain.c, gain.n, gain.p) == (0.25, 0, 1, 4, 1.0)
    assert (short.difference, short.b, short.c, short.p) == (0.0, 0, 0, 1.0)
    assert gain.low == 0.0
    assert gain.high == 0.75


def test_contrast_of_the_loss_has_an_interval_and_no_p(small):
    gain = next(c for c in contrasts(small) if c.metric == LOSS and c.kind == "gain")
    assert gain.difference == pytest.approx(-0.05)
    assert (gain.p, gain.p_holm, gain.detectable) == (None, None, None)
    assert gain.low is not None
    assert gain.low < -0.05 < gain.high


def test_contrast_holm_spans_tasks_models_and_seeds(cell):
    right, wrong = "1" * 12, "0" * 12
    cells = [
        cell(k, ell, right if ell == 16 else wrong, task=task, seed=seed)
        for task in ("a", "b")
        for seed in (0, 1)
        for k, ell in ((16, 16), (4, 4), (4, 16))
    ]
    found = contrasts(cells)
    gain = [c for c in found if c.kind == "gain"]
    assert len(found) == 8
    assert [c.p for c in gain] == [2 / 2**12] * 4
    assert [c.p_holm for c in gain] == pytest.approx([8 * 2 / 2**12] * 4)
    assert all(c.significant for c in gain)
    assert not any(c.significant for c in found if c.kind == "shortfall")


def test_contrast_pairs_only_documents_scored_on_both_sides(cell):
    one, two = cell(4, 4, "0011"), cell(4, 16, "1111")
    one.samples[FIRST]["d0"] = None
    del two.samples[FIRST]["d1"]
    found = compare({0: one}, {0: two}, FIRST)
    assert found is not None
    assert (found.n, found.difference, found.b, found.c) == (2, 0.0, 0, 0)


def test_contrast_without_samples_is_the_difference_of_values_alone(cell):
    one = cell(4, 4, extra={FIRST: Measured(0.5, 0.1, 10)})
    two = cell(4, 16, extra={FIRST: Measured(0.75, 0.1, 10)})
    (found,) = contrasts([one, two])
    assert (found.difference, found.low, found.p, found.significant) == (0.25, None, None, False)


def test_contrast_of_scores_between_right_and_wrong_has_no_mcnemar(cell):
    one = cell(4, 4, losses=[0.2, 0.4, 0.9], primary="rougeL")
    two = cell(4, 16, losses=[0.3, 0.6, 0.9], primary="rougeL")
    for c in (one, two):
        c.samples["rougeL"] = c.samples[LOSS]
        c.metrics["rougeL"] = c.metrics[LOSS]
    found = contrasts([one, two])[0]
    assert (found.metric, found.p) == ("rougeL", None)
    assert found.difference == pytest.approx(0.1)


def test_contrast_of_failed_or_missing_cells_is_left_out(cell):
    cells = [cell(16, 16, "11"), cell(4, 4, error="gone"), cell(4, 16, "11"), cell(3, 16, "11")]
    assert [(c.kind, c.train_bits) for c in contrasts(cells)] == [("shortfall", 4), ("shortfall", 3)]


def test_gain_over_seeds_averages_document_by_document(cell):
    cells = [
        cell(4, 4, "0000", seed=0), cell(4, 16, "1100", seed=0),
        cell(4, 4, "1000", seed=1), cell(4, 16, "1000", seed=1),
    ]  # fmt: skip
    results = ResultSet(cells)
    (found,) = gains(results, results.lines()[0], FIRST)
    assert (found.difference, found.seed, found.p, found.n) == (0.25, None, None, 4)
    assert paired_scores(cells[0::2], cells[1::2], FIRST) == ([0.5, 0, 0, 0], [1, 0.5, 0, 0])


def test_base_without_adapter_has_no_contrasts(cell):
    assert contrasts([cell(16, 16, "11", adapter="none"), cell(4, 4, "10", adapter="none")]) == []


def test_two_results_for_one_cell_are_refused(cell):
    with pytest.raises(PlrError, match="two results for the cell"):
        ResultSet([cell(4, 4, "1"), cell(4, 4, "0")])


def test_average_hides_no_gap(cell):
    results = ResultSet([cell(4, 4, "11", task="a"), cell(4, 4, error="gone", task="b"), cell(4, 4, "10", task="c")])
    a, b, c = (results.entry(line, 4, 4, FIRST) for line in results.lines())
    assert average([a, c]).mean == 0.75
    assert average([a, b, c]).mean is None


def test_bits_fall_in_k_and_rise_in_l_then_go_below(cell):
    places = [(16, 4), (4, 16), (16, 16), (4, 4), (16, 8), (8, 8)]
    assert ResultSet([cell(*place, "1") for place in places]).bits() == [
        (16, 16),
        (16, 8),
        (16, 4),
        (8, 8),
        (4, 4),
        (4, 16),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "=HYPERLINK(1)"])
def test_csv_holds_no_formula(cell, name):
    rows = list(csv.reader(io.StringIO(csv_text([cell(16, 16, "10", model=name, adapter=name)]))))
    fields = [field for row in rows[1:] for field in row]
    assert f"'{name}" in fields
    assert not [field for field in fields if field.startswith(("=", "+", "-", "@", "\t"))]
