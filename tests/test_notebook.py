"""The notebooks run from top to bottom on the embedded base, and are committed without outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "notebooks" / "01_quickstart.ipynb"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert not any("execution" in cell["metadata"] for cell in code)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel that is this very Python with this very plr, whatever kernels the machine has."""
    folder = tmp_path / "jupyter" / "kernels" / "plr-test"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "plr", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return "plr-test"


def test_quickstart_runs_and_shows_table_and_heatmap(
    kernel: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=None, kernel_name=kernel, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # a cell that raises raises here

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    steps, matrix, table, page = (_text(cell) for cell in code[-4:])
    # Made: the 16-bit adapter and two scores. Found: the 2-bit base, its adapter and the score of (2, 16).
    assert "'made': 3" in steps
    assert "'failed': 0" in steps
    assert "k \\ l" in matrix
    assert "| Datasets | Models |" in table
    assert "16-bit LoRA" in table
    assert "&lt;table class=&quot;heat&quot;" in page
    assert (home / "base").is_dir()
    assert (tmp_path / "runs" / "transfer" / "results.csv").is_file()


def _text(cell: dict) -> str:  # type: ignore[type-arg]
    """Everything a cell printed and showed."""
    parts = []
    for output in cell["outputs"]:
        parts.append(output.get("text", ""))
        parts += [str(value) for value in output.get("data", {}).values()]
    return "\n".join(parts)
