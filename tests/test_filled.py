"""What `docs/fill.py` writes: tables of recorded runs, pages of commands and keys, schemas."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load(file: str) -> Any:
    name = f"docs_{Path(file).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> Any:
    return load("filling/tables.py")


def test_committed_documents_are_what_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    files = load("fill.py").written()
    assert ROOT / "docs" / "cli.md" in files
    stale = [
        path.relative_to(ROOT).as_posix() for path, text in files.items() if path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run: python docs/fill.py"


TABLE = """It gains.

- one: Yes.
- two: No.

### `acc`, the primary metric, in percent

Legend.

| Datasets | Models | 16-bit LoRA | 4-bit QLoRA | PLR8 | PLR16 |
| --- | --- | --- | --- | --- | --- |
| one | m | 25.00 | **50.00** | - | 12.50 |
| two | m | 1.00 | 2.00 | - | **3.00** |
| Avg. | m | 13.00 | 26.00 | - | 7.75 |

### 95 % intervals of `acc`

| Datasets | Models | 16-bit LoRA | 4-bit QLoRA | PLR8 | PLR16 |
| --- | --- | --- | --- | --- | --- |
| one | m | 20 to 30 | 45 to 55 | - | 10 to 15 |
| two | m | 0 to 2 | 1 to 3 | - | 2 to 4 |
| Avg. | m | - | - | - | - |
"""
ROWS = """model,task,train_bits,restore_bits,seed,metric,value,n
m,one,16,16,0,acc,0.25,300
m,one,4,4,0,acc,0.5,300
m,one,4,16,0,acc,0.125,300
m,two,16,16,0,acc,0.01,60
m,two,4,4,0,acc,0.02,60
m,two,4,16,0,acc,0.03,64
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "table.md").write_text(TABLE)
    (tmp_path / "demo" / "results.csv").write_text(ROWS)
    return tmp_path


def test_a_study_becomes_a_grid_of_k_and_l_for_each_task(tables: Any, recorded: Path) -> None:
    page = "x\n<!-- table:demo -->\nbefore\n<!-- /table:demo -->\n<!-- table:none -->\nbefore\n<!-- /table:none -->\n"
    text = tables.filled(page, recorded, recorded / "docs")
    one, two = text.index("**m on one**: `acc`, in percent (n = 300, 1 seed)"), text.index("**m on two**")
    assert (
        "| trained on \\ served on | 16 bits | 4 bits |\n| --- | --- | --- |\n| **16 bits** | 25.00 | · |"
        in text[one:two]
    )
    assert "| **4 bits** | 12.50 | **50.00** |\n\nYes.\n" in text[one:two]
    assert "| **4 bits** | **3.00** | 2.00 |" in text[two:]
    assert "(n = 60 to 64, 1 seed)" in text[two:]
    assert text.index("It gains.") < one
    assert "| **4 bits** | 10 to 15 | 45 to 55 |" in text
    assert "(../demo/table.md)" in text
    assert "before" not in text
    assert "_Not recorded yet._" in text
    assert tables.filled(text, recorded, recorded / "docs") == text


def test_one_grid_has_its_sentence(tables: Any, recorded: Path) -> None:
    text = tables.filled("<!-- grid:demo/two -->\n<!-- /grid:demo/two -->\n", recorded, recorded)
    assert "**m on two**" in text
    assert "**m on one**" not in text
    assert "\n\nNo.\n" in text
    with pytest.raises(ValueError, match="no task three: one, two"):
        tables.filled("<!-- grid:demo/three -->\n<!-- /grid:demo/three -->\n", recorded, recorded)


def test_a_table_that_is_not_its_csv_is_refused(tables: Any, recorded: Path) -> None:
    (recorded / "demo" / "results.csv").write_text(ROWS.replace("0.125", "0.225"))
    with pytest.raises(ValueError, match=r"the table says 12\.50 at k = 4, l = 16"):
        tables.filled("<!-- table:demo -->\n<!-- /table:demo -->\n", recorded, recorded)


def test_adapters_of_one_task_stand_side_by_side(tables: Any, recorded: Path) -> None:
    (recorded / "demo" / "compare.md").write_text(
        "### Costs\n\n| Adapter | k → l | Trainable | Adapter, MB | Value | n |\n| --- | --- | --- | --- | --- | --- |\n"
        "| full | 16 → 16 | 1,000 | 4.3 | 84.00 | 300 |\n| LoRA | 4 → 16 | 100 | 0.4 | 75.33 | 300 |\n"
        "| LoRA | 4 → 4 | 100 | 0.4 | 78.67 | 300 |\n"
    )
    text = tables.filled("<!-- table:demo -->\n<!-- /table:demo -->\n", recorded, recorded)
    assert "| Adapter | Trainable | MB | 16 → 16 | 4 → 16 | 4 → 4 |" in text
    assert "| full | 1,000 | 4.3 | 84.00 | · | · |\n| LoRA | 100 | 0.4 | · | 75.33 | 78.67 |\n" in text
    assert text.index("| full | 1,000") < text.index("All columns") < text.index("| LoRA | 4 → 16 | 100 |")
