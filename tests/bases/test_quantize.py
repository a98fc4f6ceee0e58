"""Several widths from one source, less memory, another forward dtype: how a base is made changes no byte of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plr.bases import quantize as worker
from plr.cli import app
from plr.core.specs import Quantize
from plr.engines.plan import ready_jobs
from plr.lab import Lab
from plr.study import Study, study_config
from plr.study.presets import PRESETS

SMALL = ["quantize.samples=8"]
WIDTHS = (8, 4, 3, 2)


def weights(artifact: Any) -> str:
    return artifact.manifest["files"]["model.safetensors"]["sha256"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """sha256 of the weights of each width, made by itself."""
    made: dict[int, str] = {}
    for bits in WIDTHS:
        lab = Lab(tmp_path_factory.mktemp(f"alone{bits}"), offline=True)
        made[bits] = weights(lab.quantize(bits=bits, overrides=SMALL))
    return made


def test_widths_made_in_one_go_are_those_made_alone(
    alone: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    load = worker.load_source

    def counted(*args: Any, **options: Any) -> Any:
        loads.append(1)
        return load(*args, **options)

    monkeypatch.setattr(worker, "load_source", counted)
    lab = Lab(tmp_path, offline=True)
    artifacts = lab.make_all([lab.base(bits=bits, overrides=SMALL) for bits in WIDTHS])
    assert {a.metrics["bits"]: weights(a) for a in artifacts} == alone
    assert len(loads) == 1


def test_low_memory_makes_the_same_base(alone: dict[int, str], tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, low_memory=True)
    assert weights(lab.quantize(bits=3, overrides=SMALL)) == alone[3]


def test_low_memory_loads_a_source_for_each_width(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, low_memory=True)
    bases = lab.make_all([lab.base(bits=bits, overrides=SMALL) for bits in (4, 2)])
    assert [base.metrics["gate"]["verdict"] != "" for base in bases] == [True, True]


def test_the_forward_dtype_is_recorded(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True, dtype="bfloat16")
    assert lab.quantize(bits=4, overrides=SMALL).metrics["dtype"] == "bfloat16"


def test_a_small_model_is_calibrated_in_float32(tmp_path: Path) -> None:
    assert Lab(tmp_path, offline=True).quantize(bits=4, overrides=SMALL).metrics["dtype"] == "float32"


def test_bases_of_one_source_and_calibration_are_one_job() -> None:
    study = Study(study_config({"name": "s", "preset": "tiny", "tasks": ["tiny_math", "tiny_sql"]}))
    bases = list(
        {s.fingerprint: s for cell in study.cells for s in [cell.step.base] if isinstance(s, Quantize)}.values()
    )
    assert len(bases) == 8
    assert [len(job) for job in ready_jobs(bases, set(), 1)] == [4, 4]
    assert max(len(job) for job in ready_jobs(bases, set(), 4)) == 2


def test_the_preset_best_writes_the_same_format_and_differs_from_paper_in_quantization_alone() -> None:
    paper, best = PRESETS["paper"], PRESETS["best"]
    assert {key for key in paper if paper[key] != best[key]} == {"quantize"}
    assert paper["quantize"].items() - best["quantize"].items() == {("sym", True)}
    study = Study(study_config({"name": "s", "preset": "best", "quantize": {"samples": 8}}))
    assert all(cell.step.target for cell in study.cells)


def test_best_has_less_error_than_paper_at_two_bits(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offline=True)

    def mean_error(preset: str) -> float:
        overrides = ["quantize.samples=32", "quantize.group_size=64"]
        modules = lab.quantize(bits=2, preset=preset, overrides=overrides).metrics["modules"]
        return sum(m["error"] for m in modules) / len(modules)

    assert mean_error("best") < 0.7 * mean_error("paper")


def test_several_widths_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLR_HOME", str(tmp_path / "home"))
    words = ["quantize", "--bits", "4,2", "--samples", "4", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    folders = sorted((tmp_path / "out").iterdir())
    assert ["-2bit-" in folders[0].name, "-4bit-" in folders[1].name] == [True, True]
    assert all((folder / "model.safetensors").is_file() for folder in folders)
