"""What each method refuses before any work, and what one width of a study may have for itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plr.core.specs import Quantization, Quantize
from plr.errors import ConfigError, MissingDependencyError, ModelError, UsageError
from plr.quantizers import quantizers
from plr.study import Study, study_config
from plr.study.presets import PRESETS

from .conftest import SPECS, make_batches, make_model

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("nf4", {"bits": 3}, r"nf4 cannot carry out bits 3\n  expected: bits 4\n  next: choose another method for 3 bits"),
    ("nf4", {"group_size": 100}, r"group_size 100\n  expected: group_size 64 or 32 or 128"),
    ("nf4", {"group_size": -1}, r"group_size -1\n[^\n]*\n  next: --set quantize\.group_size=64"),
    ("nf4", {"sym": False}, "sym false"),
    ("nf4", {"desc_act": True, "grid": "hessian"}, "desc_act true, grid hessian"),
    ("int8", {"bits": 4}, r"int8 cannot carry out bits 4\n  expected: bits 8"),
    ("int8", {"group_size": 128}, r"group_size 128\n  expected: group_size -1"),
    ("int8", {"double_quant": True}, "double_quant true"),
    ("rtn", {"refine_passes": 1}, "refine_passes 1"),
    ("rtn", {"grid": "hessian"}, r"grid hessian\n  expected: grid minmax or mse"),
    ("rtn", {"desc_act": True}, "desc_act true"),
    ("rtn", {"act_group_aware": True}, "act_group_aware true"),
    ("rtn", {"input_correction": 0.5}, "input_correction 0.5"),
    ("gptq", {"double_quant": True}, "double_quant true"),
    ("gptq", {"desc_act": True, "act_group_aware": True}, "two orders of the same columns"),
    ("gptqmodel", {"grid": "mse"}, "grid mse"),
    ("gptqmodel", {"block_size": 64}, r"block_size 64\n  expected: block_size 128"),
    ("gptqmodel", {"group_size": 48}, "group_size 48"),
    ("gptqmodel", {"desc_act": True, "act_group_aware": True}, "act_group_aware with desc_act"),
    ("gptqmodel", {"group_size": -1, "act_group_aware": True}, "act_group_aware with group_size -1"),
]


@pytest.mark.parametrize(("method", "over", "message"), REFUSED)
def test_a_method_refuses_what_it_cannot_carry_out(method: str, over: dict[str, Any], message: str) -> None:
    spec = Quantization(method=method, **{**SPECS[method], **over})
    with pytest.raises(UsageError, match=message):
        quantizers.get(method).check(spec)


@pytest.mark.parametrize("method", SPECS)
def test_a_method_passes_over_what_only_concerns_another_solver(method: str) -> None:
    quantizers.get(method).check(Quantization(method=method, **{**SPECS[method], "damp_percent": 0.1}))


@pytest.mark.parametrize("method", ["gptq", "rtn", "gptqmodel"])
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"best"}))
def test_presets_are_valid_for_every_method_of_their_kind(name: str, method: str) -> None:
    for bits in (8, 4, 3, 2):
        study(preset=name, quantize={"method": method}, train_bits=[bits], restore_bits=[bits])


def test_the_preset_best_is_of_plrs_own_solver() -> None:
    study(preset="best")
    for method in ("rtn", "gptqmodel"):
        with pytest.raises(UsageError, match=f"method {method} cannot carry out .*grid hessian"):
            study(preset="best", quantize={"method": method}, train_bits=[4], restore_bits=[4])


def test_the_paper_preset_is_valid_for_nf4() -> None:
    study(preset="paper", quantize={"method": "nf4"}, train_bits=[4], restore_bits=[16, 4])


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from plr.quantizers import quantizers; from plr.core.specs import Quantization\n"
        "[quantizers.get(m).check(Quantization(method=m, bits=b, group_size=g)) for m, b, g in "
        "(('gptq', 4, 128), ('rtn', 4, 128), ('gptqmodel', 4, 128), ('nf4', 4, 64), ('int8', 8, -1))]\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'gptqmodel'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def study(**value: Any) -> Study:
    return Study(study_config({"name": "s", **value}))


def bases(made: Study) -> dict[int, Quantization]:
    """bits -> how that base is made, over all cells."""
    found = {cell.step.base for cell in made.cells}
    return {base.bits: base.quantization for base in found if isinstance(base, Quantize)}


def test_by_bits_changes_the_base_of_that_width_alone() -> None:
    plain = bases(study(preset="tiny"))
    mixed = bases(study(preset="tiny", quantize={"by_bits": {4: {"method": "nf4", "group_size": 64}}}))
    assert {bits for bits in plain if plain[bits] != mixed[bits]} == {4}
    assert (mixed[4].method, mixed[4].group_size, mixed[4].calibration) == ("nf4", 64, None)
    assert mixed[3].method == "gptq"
    assert mixed[3].calibration is not None


def test_by_bits_of_the_command_line_goes_over_that_of_the_file() -> None:
    value = {"name": "s", "preset": "tiny", "quantize": {"by_bits": {4: {"method": "nf4", "group_size": 64}}}}
    made = Study(study_config(value, overrides=("quantize.by_bits.4.group_size=128",)))
    assert (bases(made)[4].method, bases(made)[4].group_size) == ("nf4", 128)


@pytest.mark.parametrize(
    ("by_bits", "message"),
    [
        ({5: {"method": "nf4"}}, r"quantize\.by_bits: 5 is no width of a quantized base: 2, 3, 4, 8"),
        ({16: {"method": "nf4"}}, "16 is no width of a quantized base"),
        ({4: {"metod": "nf4"}}, "4: unknown key metod, did you mean method"),
        ({4: {"by_bits": {}}}, "4: unknown key by_bits"),
        ({4: {"samples": 0}}, r"by_bits: 4: samples: .*greater than or equal to 1"),
        ({4: "nf4"}, r"quantize\.by_bits\.4: .*dictionary"),
        ("nf4", r"quantize\.by_bits: .*dictionary"),
        ({8: {"method": "nf4", "group_size": 64}}, "nf4 cannot carry out bits 8"),
        ({4: {"method": "nf5"}}, "unknown quantization method 'nf5'"),
    ],
)
def test_by_bits_that_cannot_be(by_bits: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        study(preset="tiny", quantize={"by_bits": by_bits})
    assert isinstance(error.value, ConfigError) or "nf" in message


@pytest.mark.parametrize(("method", "package"), [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("gptqmodel",) * 2])
def test_a_missing_package_is_named_with_its_pip_command(
    method: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingDependencyError, match=rf"pip install 'plr\[{package}\]'"):
        quantizers.get(method).quantize(
            make_model(), make_batches(), Quantization(method=method, **SPECS[method]), tmp_path
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json"),
        ("{}", "is not quantized"),
        ('{"quantization_config": {"quant_method": "aqlm"}}', "is quantized by aqlm"),
        ('{"quantization_config": {"quant_method": "gptq", "bits": 4}}', "architectures|model_type"),
    ],
)
def test_a_folder_that_is_no_k_bit_checkpoint_of_ours(config: str | None, message: str, tmp_path: Path) -> None:
    import torch

    from plr.bases.load import load_quantized

    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        load_quantized(tmp_path, dtype=torch.float32, device="cpu")


# A value other than the default of every setting that asks for something, and the methods that can do it.
ASKS: dict[str, tuple[Any, set[str]]] = {
    "group_size": (64, {"gptq", "rtn", "gptqmodel", "nf4"}),
    "sym": (False, {"gptq", "rtn", "gptqmodel"}),
    "desc_act": (True, {"gptq", "gptqmodel"}),
    "static_groups": (True, {"gptq", "gptqmodel"}),
    "act_group_aware": (True, {"gptq", "gptqmodel"}),
    "grid": ("mse", {"gptq", "rtn"}),
    "refine_passes": (1, {"gptq"}),
    "input_correction": (0.5, {"gptq"}),
    "double_quant": (True, {"nf4"}),
}


@pytest.mark.parametrize("method", SPECS)
def test_what_a_method_does_not_do_it_refuses(method: str) -> None:
    from plr.quantizers.base import PASSED_OVER

    assert ASKS.keys() == Quantization.model_fields.keys() - {*PASSED_OVER}, "a new setting belongs in one of them"
    for name, (value, able) in ASKS.items():
        spec = Quantization(method=method, **{**SPECS[method], name: value})
        if method in able:
            quantizers.get(method).check(spec)
        else:
            with pytest.raises(UsageError, match=f"{method} cannot carry out {name}"):
                quantizers.get(method).check(spec)


def test_every_knob_of_the_solver_is_read_off_the_field_of_its_name() -> None:
    from plr.quantizers.gptq import settings_of

    over = {"bits": 3, "group_size": 32, "sym": False, "act_group_aware": True, "static_groups": True, "grid": "mse"}
    over |= {"damp_percent": 0.2, "block_size": 64, "refine_passes": 3, "input_correction": 0.25}
    spec = Quantization(**over)  # type: ignore[arg-type]
    settings = settings_of(spec, "rtn")
    assert {name: getattr(settings, name) for name in over} == over
    assert (settings.method, settings.desc_act) == ("rtn", False)
    assert {*vars(settings)} <= Quantization.model_fields.keys()
