"""Rows of the table of modes; and a mode that is two rows, one for what it is and one for what builds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plr.core.modes import MODES, Mode, grid_modes, plain_mode
from plr.core.specs import Evaluate, Restore
from plr.embedded import tiny_path
from plr.errors import ConfigError, UnknownNameError, UsageError
from plr.lab import Lab
from plr.report.write import write_study
from plr.restoration.modes import BUILDERS, Restoration
from plr.study import study_config

SMALL: dict[str, Any] = {
    "name": "modes",
    "preset": "tiny",
    "train_bits": [4],
    "restore_bits": [16],
    "quantize": {"method": "rtn"},
    "train": {"train_limit": 16, "batch_size": 8, "validation_limit": 4, "learning_rate": 0.001},
    "evaluate": {"limit": 2},
}
HALFWAY = Mode(
    "halfway",
    "W16 + dW / 2",
    "half of the adapter, merged",
    "dense",
    grid=lambda k, ell: k < ell == 16,
    fits=lambda k, ell: ell == 16,
    misfit="is written dense",
    advice="use --bits 16",
)


def build_halfway(work: Restoration) -> dict[str, Any]:
    """W16 + dW / 2, by halving what `merged` added to the source."""
    from plr.bases.load import load_source
    from plr.restoration.modes import merged

    metrics = merged(work)
    source = load_source(work.step.base.model, dtype=torch.float32, device="cpu").model
    whole = type(source).from_pretrained(work.folder, dtype=torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(whole.parameters(), source.parameters(), strict=True):
            ours.copy_((ours + theirs) / 2)
    whole.save_pretrained(work.folder)
    return metrics


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "halfway", HALFWAY)
    monkeypatch.setitem(BUILDERS, "halfway", build_halfway)


def test_every_mode_has_its_row_and_its_builder() -> None:
    assert MODES.keys() == BUILDERS.keys()
    assert all(name == mode.name for name, mode in MODES.items())


def test_a_pair_of_bits_means_one_mode_by_itself() -> None:
    """Tables find a cell by (k, l) alone: of the plain modes exactly one has a cell there, and it is the one meant."""
    for k in (16, 8, 4, 3, 2):
        for ell in (16, 8, 4, 3, 2):
            plain = [mode.name for mode in MODES.values() if mode.plain and mode.grid(k, ell)]
            assert plain == [plain_mode(same_base=k == ell)]
            assert all(mode.fits(k, ell) for mode in MODES.values() if mode.grid(k, ell))


def test_the_cells_of_a_study_of_all_modes() -> None:
    every = ("restore", "roundtrip", "requantize")
    assert list(grid_modes(every, 4, 4)) == ["keep", "roundtrip", "requantize"]
    assert list(grid_modes(every, 16, 16)) == ["keep"]
    assert list(grid_modes(every, 4, 16)) == ["restore"]
    assert list(grid_modes(every, 4, 8)) == ["restore", "requantize"]
    assert list(grid_modes(every, 16, 4)) == ["restore", "requantize"]
    assert list(grid_modes(("requantize",), 4, 16)) == []


def test_a_mode_of_two_rows_goes_the_whole_way(halfway: None, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "home", offline=True, dtype="float32", device="cpu")
    study = lab.grid(study_config({**SMALL, "modes": ["restore", "halfway"]}))
    assert [(cell.train_bits, cell.restore_bits, cell.mode) for cell in study.cells] == [
        (4, 16, "restore"),
        (4, 16, "halfway"),
        (4, 4, "keep"),
    ]
    results = study.results(lab.store)
    assert [result.error for result in results] == [None] * 3
    write_study(study, lab.store, tmp_path / "report")
    assert "halfway" in (tmp_path / "report" / "table.md").read_text()

    step = study.cells[1].step
    assert isinstance(step, Evaluate)
    assert isinstance(step.target, Restore)
    assert step.target.label.endswith("-to-16bit-halfway")
    half = lab.store.require(step.target)
    whole = lab.restore(lab.store.require(step.target.adapter), bits=16, merge=True)
    source = load_file(tiny_path() / "model.safetensors")
    tensors, merged = load_file(half.path / "model.safetensors"), load_file(whole.path / "model.safetensors")
    changed = [name for name in merged if not torch.equal(merged[name].float(), source[name].float())]
    assert changed
    for name in changed:
        added = merged[name].float() - source[name].float()
        torch.testing.assert_close(tensors[name].float() - source[name].float(), added / 2, rtol=0.02, atol=1e-4)

    with pytest.raises(UsageError, match="mode halfway to 4 bits is written dense\n  next: use --bits 16"):
        lab.restored(lab.store.require(step.target.adapter), bits=4, mode="halfway")


def test_the_help_of_the_command_line_lists_it() -> None:
    code = (
        "from plr.core.modes import MODES, Mode\n"
        "MODES['halfway'] = Mode('halfway', 'W16 + dW / 2', 'half', 'dense', grid=lambda k, ell: ell == 16)\n"
        "from plr.cli import main; import sys; sys.argv = ['plr', 'restore', '--help']; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text = "".join(shown.replace("│", "").split())
    assert "halfway:W16+dW/2(half)" in text
    assert "auto|halfway" in text


def test_an_unknown_mode_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="roundtrp is no mode that a study asks for, did you mean roundtrip"):
        study_config({**SMALL, "modes": ["roundtrp"]})
    with pytest.raises(ConfigError, match="keep is no mode that a study asks for"):
        study_config({**SMALL, "modes": ["keep"]})
    lab = Lab(tmp_path, offline=True)
    step = lab.adapter(bits=4)
    with pytest.raises(UnknownNameError, match=r"unknown mode 'requantise'(.|\n)*did you mean requantize"):
        lab.restored(step, bits=16, mode="requantise")
    with pytest.raises(ValueError, match="unknown mode nothing: one of restore, keep"):
        Restore(adapter=step, base=step.base, mode="nothing")
