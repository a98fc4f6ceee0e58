"""Tables and their titles, of results that carry no units, come out byte for byte as they did when units were read off names.

The files in `report/` were written at that version, by `python tests/golden/test_report_of_before.py` with its `plr` on the path.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rich.console import Console

from plr.report import CellResult, Metric, console_table, table_md
from plr.report.cells import ResultSet
from plr.report.compare import compare_md
from plr.report.costs import compare_rows

FOLDER = Path(__file__).parent / "report"
TASKS = {
    "math": ("exact_match,first-answer", ("exact_match,strict", "numeric_match", "ended", "answer_loss")),
    "news": ("rougeL", ("rouge2", "ended", "answer_loss")),
    "cola": ("mcc", ("acc", "answer_loss")),
    "stsb": ("pearson", ("spearman", "answer_loss")),
}
ROWS = 40


def cells(tasks: tuple[str, ...]) -> list[CellResult]:
    """A study of `tasks`, k and l of 16 and 4 bits, two adapters and the base alone; one cell failed."""
    generator = random.Random(7)
    made = []
    for task in tasks:
        primary, others = TASKS[task]
        for adapter, k, ell in (
            ("none", 16, 16), ("none", 4, 4), ("lora", 16, 16), ("lora", 4, 4), ("lora", 4, 16),
            ("sparse", 4, 4), ("sparse", 4, 16),
        ):  # fmt: skip
            right = generator.random()
            samples = {name: _values(name, right, generator) for name in (primary, *others)}
            metrics = {
                name: Metric(sum(values.values()) / ROWS if values else right, 0.0625, ROWS)
                for name, values in samples.items()
            }
            failed = task == "math" and adapter == "sparse" and ell == 16
            made.append(
                CellResult(
                    model="tiny",
                    task=task,
                    adapter=adapter,
                    train_bits=k,
                    restore_bits=ell,
                    mode="keep" if k == ell else "restore",
                    seed=0,
                    fingerprint=f"{task}-{adapter}-{k}-{ell}",
                    primary="" if failed else primary,
                    metrics={} if failed else metrics,
                    samples={} if failed else samples,
                    seconds=None if failed else 1.0,
                    error="broke" if failed else None,
                )
            )
    return made


def _values(name: str, right: float, generator: random.Random) -> dict[str, float | None]:
    if name in ("mcc", "pearson", "spearman"):  # of all rows at once
        return {}
    if name == "answer_loss":
        return {f"d{i}": generator.random() for i in range(ROWS)}
    if name.startswith("rouge"):
        return {f"d{i}": right * generator.random() for i in range(ROWS)}
    return {f"d{i}": float(generator.random() < right) for i in range(ROWS)}


def texts(tasks: tuple[str, ...]) -> dict[str, str]:
    study = cells(tasks)
    console = Console(width=120, record=True, quiet=True)
    console.print(console_table(study))
    rows = compare_rows(ResultSet(study), {})
    made = {"table.md": table_md(study), "compare.md": compare_md(rows, "study"), "console.txt": console.export_text()}
    return {name: text if name == "console.txt" else _tables(text) for name, text in made.items()}


def _tables(text: str) -> str:
    """Without the sentences between them, which may be worded anew."""
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(("|", "#")))


STUDIES = {"one": ("math",), "all": tuple(TASKS)}


@pytest.mark.parametrize("study", STUDIES)
def test_the_tables_are_those_of_before(study: str) -> None:
    for name, text in texts(STUDIES[study]).items():
        assert text == (FOLDER / f"{study}-{name}").read_text(encoding="utf-8"), name


if __name__ == "__main__":
    for study, tasks in STUDIES.items():
        for name, text in texts(tasks).items():
            (FOLDER / f"{study}-{name}").write_text(text, encoding="utf-8")
