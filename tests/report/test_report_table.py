"""table.md and the terminal's matrix: golden text of tiny studies."""

from __future__ import annotations

import pytest
from rich.console import Console

from plr.report.table import console_table, table_md
from plr.scoring.metric import metric_named
from plr.study.cells import Measured

FIRST, STRICT = "exact_match,first-answer", "exact_match,strict"


def section(text: str, title: str) -> list[str]:
    """Lines of the tables under the first heading that starts with ``title``."""
    body = text.split(f"### {title}", 1)[1].split("\n### ", 1)[0]
    return [line for line in body.splitlines() if line.startswith("|")]


def console(cells, width=100) -> str:
    out = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    out.print(console_table(cells))
    return out.export_text()


def test_table_one_golden(small):
    assert section(table_md(small), f"`{FIRST}`") == [
        "| Datasets | Models | 16-bit LoRA | 4-bit QLoRA | PLR16 | 2-bit QLoRA | PLR4 | PLR16 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| math | tiny | 75.00 | 50.00 | **75.00** | 0.00 | failed | **25.00** |",
    ]


def test_second_metric_ended_and_loss_have_the_same_shape(small):
    text = table_md(small)
    assert section(text, f"`{STRICT}`")[2] == "| math | tiny | 75.00 | **50.00** | 25.00 | 0.00 | failed | **25.00** |"
    assert section(text, "`ended`")[2] == "| math | tiny | 100.00 | **100.00** | 50.00 | 100.00 | failed | 100.00 |"
    assert section(text, "`answer_loss`")[2] == (
        "| math | tiny | 0.2500 | 0.3500 | **0.3000** | 0.8000 | failed | **0.6000** |"
    )
    assert "nats per token (lower is better)" in text


def test_wilson_intervals_stand_below(small):
    # 3 of 4: 30.06 to 95.44 (scipy: binomtest(3, 4).proportion_ci(method="wilson"))
    row = section(table_md(small), "95 % intervals")[2]
    assert row.startswith("| math | tiny | 30.06 to 95.44 | 15.00 to 85.00 | 30.06 to 95.44 | 0.00 to 48.99 | failed |")


def test_contrasts_table_has_both_tests(small):
    rows = section(table_md(small), "Contrasts")
    assert rows[0].startswith("| Contrast | Metric | Difference | 95 % interval | p | p (Holm) | n | Detectable |")
    assert rows[2] == (
        "| gain of restoring (4, 4) to (4, 16) | exact_match,first-answer "
        "| +25.00 | 0.00 to +75.00 | 1.000 | 1.000 | 4 | none |"
    )
    assert len(rows) == 2 + 8


def test_failed_cell_is_named_with_its_reason(small):
    assert section(table_md(small), "Failed cells")[2] == (
        "| math | tiny | lora | 2 | 4 | restore | 0 | out of memory \\| 3.1 &lt;GiB> needed |"
    )


def test_the_size_says_what_it_cannot_show(cell):
    text = table_md([cell(16, 16, "10" * 500), cell(4, 4, "01" * 500)])
    assert "n = 1000 documents a cell" in text
    assert "about 2.8 points where two cells disagree on 10 % of the documents, 4.0 points" in text
    assert "too few for any paired difference" in table_md([cell(16, 16, "10"), cell(4, 4, "01")])


def test_mcnemar_says_nothing_of_a_correlation_or_a_loss(cell):
    cells = [cell(16, 16, primary="pearson", extra={"pearson": Measured(0.5, 0.1, 1500)}, losses=[0.1, 0.2])]
    assert "McNemar, before" not in table_md(cells)
    losses = [cell(k, 16, primary="answer_loss", losses=[0.1, 0.2] * 200) for k in (16, 4)]
    assert "McNemar, before" not in table_md(losses)


def test_losses_of_two_units_have_no_mean(cell):
    cells = [
        cell(16, 16, "11", task=task, primary=primary, losses=[loss, loss])
        for task, primary, loss in (("cola", "mcc", 0.5), ("stsb", "pearson", 2.0))
    ]
    losses = section(table_md(cells), "`answer_loss`")
    assert [row.split(" | ")[0] for row in losses[2:]] == ["| cola", "| stsb"]
    cells = [cell(16, 16, "11", task=task, primary="mcc", losses=[0.5, 0.5]) for task in ("cola", "rte")]
    assert section(table_md(cells), "`answer_loss`")[-1] == "| Avg. | tiny | 0.5000 |"


def test_two_tasks_and_two_models_have_the_averages_of_table_one(cell):
    right = {("a", "1B"): "1000", ("a", "3B"): "1100", ("b", "1B"): "1110", ("b", "3B"): "1111"}
    cells = [
        cell(k, k, bits if k == 16 else "0" * 4, model=model, task=task)
        for task in "ab"
        for model in ("1B", "3B")
        for k in (16, 4)
        for bits in [right[task, model]]
    ]
    assert section(table_md(cells), f"`{FIRST}`")[2:] == [
        "| a | 1B | 25.00 | 0.00 |",
        "|  | 3B | 50.00 | 0.00 |",
        "|  | Avg. | 37.50 | 0.00 |",
        "| b | 1B | 75.00 | 0.00 |",
        "|  | 3B | 100.00 | 0.00 |",
        "|  | Avg. | 87.50 | 0.00 |",
        "| Avg. | 1B | 50.00 | 0.00 |",
        "|  | 3B | 75.00 | 0.00 |",
        "|  | Avg. | 62.50 | 0.00 |",
    ]


def test_average_over_a_failed_or_missing_cell_is_not_shown(cell):
    cells = [cell(16, 16, "11", task="a"), cell(16, 16, error="gone", task="b"), cell(4, 4, "10", task="a")]
    assert section(table_md(cells), f"`{FIRST}`")[2:] == [
        "| a | tiny | 100.00 | 50.00 |",
        "| b | tiny | failed | - |",
        "| Avg. | tiny | - | - |",
    ]


def test_several_seeds_are_mean_and_sd_and_say_when_one_is_gone(cell):
    cells = [
        *(cell(16, 16, bits, seed=seed) for seed, bits in enumerate(("1111", "1110", "1100"))),
        cell(4, 4, "1100", seed=0), cell(4, 4, "1110", seed=1), cell(4, 4, error="gone", seed=2),
    ]  # fmt: skip
    text = table_md(cells)
    assert section(text, f"`{FIRST}`")[2] == "| math | tiny | 75.00 ± 25.00 | 62.50 ± 17.68 (2/3) |"
    assert "Mean ± standard deviation of 3 seeds." in text
    # 16 bits: seed means 1, 3/4, 1/2; mean squares: seed 9/36, document 11/36, rest 5/36
    # variances: seed (9 - 5) / 36 / 4 = 1/36, document (11 - 5) / 36 / 3 = 2/36; share = 1 / (1 + (2 + 5) / 4) = 4/11
    assert section(text, "Share of the variance")[2].startswith("| math | tiny | 36 |")


def test_nan_and_missing_metrics_are_dashes(cell):
    cells = [
        cell(16, 16, extra={FIRST: Measured(float("nan"), None, 4), "f1": Measured(0.5, None, 4)}),
        cell(4, 4, extra={FIRST: Measured(None, None, 0)}),
    ]
    text = table_md(cells)
    assert section(text, f"`{FIRST}`")[2] == "| math | tiny | - | - |"
    assert section(text, "`f1`")[2] == "| math | tiny | 50.00 | - |"
    assert "nan" not in text.lower()


def test_l_below_k_and_further_modes_and_bases_have_their_own_blocks(cell):
    cells = [
        cell(16, 16, "11"), cell(16, 4, "10"), cell(4, 4, "10"), cell(4, 16, "11"),
        cell(4, 4, "11", mode="requantize"), cell(16, 16, "00", adapter="none"), cell(4, 4, "00", adapter="none"),
    ]  # fmt: skip
    text = table_md(cells)
    rows = section(text, f"`{FIRST}`")
    assert rows[0] == "| Datasets | Models | 16-bit LoRA | 4-bit QLoRA | PLR16 |"
    assert rows[3:5] == ["| Datasets | Models | 16-bit LoRA on 4 |", "| --- | --- | --- |"]
    assert rows[6] == "| Datasets | Models | 4-bit QLoRA requantize 4 |"
    assert rows[9] == "| Datasets | Models | 16-bit base | 4-bit base |"
    assert rows[11] == "| math | tiny | 0.00 | 0.00 |"


def test_two_adapters_have_a_table_each(cell):
    rows = section(table_md([cell(4, 4, "11", adapter=name) for name in ("lora", "dora")]), f"`{FIRST}`")
    assert [row for row in rows if "Datasets" in row] == [
        "| Datasets | Models | 16-bit LoRA | 4-bit QLoRA |",
        "| Datasets | Models | 16-bit DoRA | 4-bit QDoRA |",
    ]


def test_names_cannot_break_the_table(cell):
    row = section(table_md([cell(16, 16, "11", model="a|b`c*\n<script>")]), f"`{FIRST}`")[2]
    assert row == "| math | a\\|b\\`c\\* &lt;script> | 100.00 |"


def test_the_same_cells_give_the_same_bytes(small):
    assert table_md(small) == table_md(list(small))


def test_empty_study_says_so():
    assert table_md([]).startswith("No cell with an adapter has a score")


@pytest.mark.parametrize(("value", "text"), [(-0.00001, "0.00"), (0.25, "+25.00"), (-0.25, "-25.00"), (None, "-")])
def test_signed_numbers(value, text):
    assert metric_named("acc").show_signed(value) == text


def test_console_matrix_rows_k_columns_l_with_gain(small):
    lines = [line.split("│") for line in console(small).splitlines() if "│" in line]
    assert [[text.strip() for text in line if text.strip()] for line in lines] == [
        ["16", "75.00", "-", "-"],
        ["4", "75.00 (+25.00)", "50.00", "-"],
        ["2", "25.00 (+25.00)", "failed", "0.00"],
    ]


def test_console_full_grid_fits_eighty_columns(cell):
    bits = (16, 8, 4, 3, 2)
    text = console([cell(k, ell, "10" * 8) for k in bits for ell in bits if ell >= k], width=80)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_console_base_is_one_row(cell):
    text = console([cell(k, k, "10", adapter="none") for k in (16, 4)])
    assert "math, tiny, no adapter" in text
    assert next(line for line in text.splitlines() if "base" in line).split() == [
        "│",
        "base",
        "│",
        "50.00",
        "│",
        "50.00",
        "│",
    ]
