"""One value for the knobs: the same through every door, and hashed as it always was."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from plr.gptq import Execution, GPTQError, Settings, gptq_solve, quantize_model, rtn_solve, save_checkpoint
from plr.gptq.execution import Options, settings_and_execution
from plr.gptq.resume import key_of
from plr.gptq.saving import FORMAT, SPEED, beyond_format
from plr.gptq.settings import Knobs, settings_of

from .conftest import make_batches, make_model
from .test_lowmem import assert_same, buffers

OTHER: dict[str, Any] = {
    "bits": 3,
    "group_size": 16,
    "sym": False,
    "desc_act": True,
    "static_groups": True,
    "damp_percent": 0.05,
    "grid": "hessian",
    "refine_passes": 1,
    "input_correction": 0.5,
}


def test_keywords_are_the_fields() -> None:
    assert get_type_hints(Knobs) == get_type_hints(Settings)
    assert get_type_hints(Options) == get_type_hints(Settings) | get_type_hints(Execution)


def test_knobs_and_execution_share_no_name() -> None:
    assert not {field.name for field in fields(Settings)} & {field.name for field in fields(Execution)}


@pytest.mark.parametrize("solve", [gptq_solve, rtn_solve])
def test_the_solvers_take_keywords_or_one_value(solve: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(8, 32, generator=generator), torch.randn(64, 32, generator=generator)
    settings = Settings(**OTHER)
    one, other = solve(W, X.t() @ X, **OTHER), solve(W, X.t() @ X, settings=settings)
    for name in ("Q", "scale", "zero", "g_idx", "noise", "power"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(one.Q, solve(W, X.t() @ X, settings=replace(settings, bits=4)).Q)


def test_a_model_is_quantized_and_saved_the_same_by_keywords_or_by_values(tmp_path: Path) -> None:
    settings, execution = Settings(**OTHER), Execution(kernel="packed", measure_rtn=False, low_memory=True)
    one, other = make_model("llama"), make_model("llama")
    named = quantize_model(one, make_batches(), **OTHER, kernel="packed", measure_rtn=False, low_memory=True)
    whole = quantize_model(other, make_batches(), settings=settings, execution=execution)
    assert [replace(report, seconds=0) for report in named] == [replace(report, seconds=0) for report in whole]
    assert_same(buffers(one), buffers(other))
    save_checkpoint(one, tmp_path / "one", **OTHER)
    save_checkpoint(other, tmp_path / "other", settings=settings)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("settings", "knobs", "message"),
    [
        (None, {}, "Neither settings nor bits were given.*settings=Settings"),
        (None, {"group_size": 64}, "Neither settings nor bits were given"),
        (Settings(bits=4), {"bits": 4, "sym": True}, "Settings and bits, sym were given.*replace"),
    ],
)
def test_one_way_at_a_time(settings: Settings | None, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(GPTQError, match=message):
        settings_of(settings, knobs)


def test_an_execution_and_its_fields_are_two_ways_too() -> None:
    with pytest.raises(GPTQError, match=r"execution and low_memory were given.*replace"):
        settings_and_execution(None, Execution(), {"bits": 4, "low_memory": True})


def test_a_keyword_that_is_no_knob_is_named() -> None:
    with pytest.raises(TypeError, match="goup_size"):
        quantize_model(make_model("llama"), [], bits=4, goup_size=32)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("wrong", [{"method": "awq"}, {"input_correction": 1.5}, {"input_correction": -0.1}])
def test_settings_check_what_nothing_else_does(wrong: dict[str, Any]) -> None:
    with pytest.raises(GPTQError, match=f"{next(iter(wrong))}=.* was given"):
        Settings(bits=4, **wrong)


def test_a_checkpoint_keeps_every_knob_that_decides_its_codes() -> None:
    settings = Settings(**OTHER)
    kept = {name: getattr(settings, name) for name in FORMAT} | beyond_format(settings)
    assert kept == {name: value for name, value in asdict(settings).items() if name not in SPEED}


def test_a_knob_that_came_later_is_no_part_of_the_identity_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Settings(bits=4)
    monkeypatch.setattr("plr.gptq.settings.LATER", frozenset[str]())
    assert plain.identity() == asdict(plain)
    monkeypatch.setattr("plr.gptq.settings.LATER", frozenset({"refine_passes"}))
    assert plain.identity() == {name: value for name, value in asdict(plain).items() if name != "refine_passes"}
    assert replace(plain, refine_passes=2).identity() == asdict(replace(plain, refine_passes=2))


def test_the_key_of_a_killed_run_is_what_it_was() -> None:
    """Blocks that an earlier version has left are found again: the value is that of the version with 22 keywords."""
    settings = Settings(
        bits=3,
        group_size=64,
        sym=False,
        static_groups=True,
        act_group_aware=True,
        damp_percent=0.05,
        block_size=64,
        grid="hessian",
        refine_passes=2,
        input_correction=0.5,
    )
    execution = Execution(kernel="packed", measure_rtn=False, forward_dtype=torch.bfloat16)
    batch = {"input_ids": torch.arange(6).view(2, 3), "use": 1}
    key = key_of(settings, execution, {"model.layers.0.q": (8, 4)}, [batch])
    assert key == "5b92a3956acc5a5cf0bdacc219c263d01b1253735c9183baba5761ef9e6e0d72"
