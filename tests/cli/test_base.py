"""`plr show` of a base: what it prints, what it draws, what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from plr.core.specs import ModelRef, Quantization, Quantize, Source, TaskSpec, Train
from plr.core.store import Artifact, Store

SOURCE = Source(model=ModelRef(kind="local", name="m", revision="0"))
BASE = Quantize(source=SOURCE, quantization=Quantization(bits=3))
GATE = {
    "rows": 32,
    "loss_16bit": 1.25,
    "loss": 2.5,
    "chance": 6.64,
    "verdict": "damaged: 40% left of what context tells the 16-bit model (task t, validation)",
    "texts": [
        {"text": "task t, validation", "rows": 32, "tokens": 1931, "perplexity_16bit": 12.34, "perplexity": 24.68,
         "kl": 0.4321, "top1_agreement": 0.625, "context_free": 4.0, "kept": 0.4},
        {"text": "own.txt", "not_measured": "every document of the file calibrates"},
    ],
}  # fmt: skip


def module(block: int, kind: str, error: float | None) -> dict[str, Any]:
    return {"name": f"model.layers.{block}.{kind}", "in_features": 8, "out_features": 4, "error": error,
            "rtn_error": None if error is None else 2 * error, "damp": None if error is None else 0.5 + block}  # fmt: skip


MODULES = [module(i, kind, 0.01 * (i + 1) * at) for i in range(4) for at, kind in ((1, "q_proj"), (3, "down_proj"))]


@pytest.fixture
def show(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("COLUMNS", "100")

    def shown(metrics: dict[str, Any], *args: str) -> tuple[int, str, str]:
        Store(home).make(BASE, lambda folder: metrics)
        return run(monkeypatch, capsys, "show", *args)

    return shown


def test_base_with_everything(show: Any) -> None:
    code, out, _ = show({"bits": 3, "gate": GATE, "modules": MODULES, "dtype": "float32"})
    assert code == 0
    assert "  bits         3\n" in out
    assert "  gate         damaged: 40% left of what context tells the 16-bit model (task t, validation)\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["task", "t,", "validation", "1,931", "12.34", "to", "24.68", "2", "0.4321", "62.5", "%"] in lines
    assert "own.txt  not measured: every document of the file calibrates" in out
    assert "answers      loss 1.250 to 2.500 nats a token (32 rows, chance 6.64)" in out
    assert ["q_proj", "4", "0.025", "0.04", "0.05"] in lines
    assert ["down_proj", "4", "0.075", "0.12", "0.15"] in lines
    worst = [line for line in lines if line and line[-1].startswith("model.layers.")]
    assert [line[-1] for line in worst] == [
        "model.layers.3.down_proj",
        "model.layers.2.down_proj",
        "model.layers.1.down_proj",
        "model.layers.3.q_proj",
        "model.layers.0.down_proj",
    ]
    assert "damping      0.5 to 3.5 on the Hessian's diagonal (1 % of its mean)" in out
    assert "dtype        float32" in out


def test_nothing_is_cut_on_a_narrow_terminal(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = show({"bits": 3, "gate": GATE, "modules": MODULES})[1]
    assert "12.34 to 24.68" in out
    assert "62.5 %" in out
    assert "…" not in out


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"gate": {"verdict": "ok", "loss": 1.5}},
        {"gate": {"rows": 0, "verdict": "not measured: no task to measure on"}, "modules": []},
        {"bits": 4, "modules": [{"name": "model.layers.0.q_proj", "error": 0.1}]},
        {"bits": 4, "modules": [module(0, "q_proj", None)]},
    ],
)
def test_manifests_of_an_older_plr_are_shown(metrics: dict[str, Any], show: Any) -> None:
    code, out, err = show(metrics)
    assert (code, err) == (0, "")
    if "gate" in metrics:
        assert metrics["gate"]["verdict"] in out


def test_plot_is_an_svg_file(show: Any, tmp_path: Path) -> None:
    file = tmp_path / "error.svg"
    code, out, _ = show({"modules": MODULES}, "--plot", str(file))
    assert code == 0
    assert f"plot         {file}" in out
    assert ET.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_json_is_the_whole_manifest(show: Any, tmp_path: Path) -> None:
    shown = json.loads(show({"gate": GATE, "modules": MODULES}, "--json", "--plot", str(tmp_path / "e.svg"))[1])
    assert shown["metrics"] == {"gate": GATE, "modules": MODULES}
    assert Path(shown["plot"]).is_file()


@pytest.mark.parametrize(
    ("metrics", "file", "message"),
    [
        ({"modules": MODULES}, "error.png", "expected: a .svg file in a folder that is there"),
        ({"modules": MODULES}, "nowhere/error.svg", "expected: a .svg file in a folder that is there"),
        ({"modules": [module(0, "q_proj", None)]}, "error.svg", "has no measured output error to draw"),
    ],
)
def test_plot_that_cannot_be_drawn(metrics: dict[str, Any], file: str, message: str, show: Any, tmp_path: Path) -> None:
    code, _, err = show(metrics, "--plot", str(tmp_path / file))
    assert code == 2
    assert message in err
    assert not (tmp_path / file).exists()


def test_adapter_has_nothing_to_plot(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plr.core.specs import AdapterSpec, TrainSpec

    step = Train(base=SOURCE, task=TaskSpec(name="t", version=1), adapter=AdapterSpec(), train=TrainSpec())
    artifact: Artifact = Store(home).make(step, lambda folder: {"steps": 1})[0]
    code, _, err = run(monkeypatch, capsys, "show", artifact.fingerprint[:8], "--plot", str(tmp_path / "e.svg"))
    assert code == 2
    assert "is no base" in err
